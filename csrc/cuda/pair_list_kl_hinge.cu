// pair_list_kl_hinge on CUDA: tensors, the sort by rows, and dispatch. The kernels are in
// pair_list_kl_hinge.cuh.
#include "cuda/pair_list_kl_hinge.cuh"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

#include "cuda/tensors.h"
#include "pair_list_check.h"

namespace pairloss::cuda {
namespace {

struct Sorted {
  Tensor values, order;
};

// aten::sort, which the stable headers do not have as a function. Stable, so that the order of a
// row's partners is that of the list.
Sorted sort(const Tensor& values) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(values),
      torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(int64_t{0}),
      torch::stable::detail::from(false),
  };
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// The allocator keeps sorted lists and workspace alive for the kernels queued here: they are reused
// in the order of the stream.
template <typename scalar_t, typename out_t>
void run(const PairListArguments& a, const Tensor* upstream, Tensor* loss, Tensor* stats,
         Tensor* grad) {
  using acc_t = accumulator_t<scalar_t>;
  const Sorted sorted = sort(torch::stable::view(a.pairs, {2 * a.count()}));
  PairListCall<scalar_t, acc_t, out_t> call;
  call.rows = a.rows();
  call.classes = a.columns();
  call.count = a.count();
  call.logits = a.logits.const_data_ptr<scalar_t>();
  call.pairs = a.pairs.const_data_ptr<int64_t>();
  call.sorted = sorted.values.const_data_ptr<int64_t>();
  call.order = sorted.order.const_data_ptr<int64_t>();
  call.similar = a.similar.const_data_ptr<bool>();
  if (a.pair_weights) call.pair_weights = a.pair_weights->const_data_ptr<acc_t>();
  if (upstream != nullptr) call.upstream = upstream->const_data_ptr<acc_t>();
  call.margin = a.margin;
  call.similar_weight = a.similar_weight;
  call.dissimilar_weight = a.dissimilar_weight;
  call.balance = a.balance;
  call.gradient = static_cast<Gradient>(a.gradient);
  call.reduction = static_cast<Reduction>(a.reduction);
  if (loss != nullptr) call.loss = loss->mutable_data_ptr<acc_t>();
  if (stats != nullptr) call.stats = stats->mutable_data_ptr<double>();
  if (grad != nullptr) call.grad = grad->mutable_data_ptr<out_t>();

  const Tensor workspace = new_workspace(a.logits, lay_out_list_workspace(call, nullptr));
  lay_out_list_workspace(call, workspace.mutable_data_ptr());
  run_pair_list_kl_hinge(call, current_stream(a.logits.get_device_index()));
}

PairListResults evaluate(const PairListArguments& a) {
  const Tensor& z = a.logits;
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  const ScalarType dtype = accumulation_type(z);
  const bool saves_grad = a.with_grad && !a.per_row();
  Tensor loss = a.per_row() ? torch::stable::new_empty(z, {a.rows()}, dtype)
                            : torch::stable::new_empty(z, {}, dtype);
  Tensor stats = torch::stable::new_empty(z, {kStats, 1}, ScalarType::Double);
  Tensor grad = saves_grad ? torch::stable::new_empty(z, {a.rows(), a.columns()}, dtype)
                           : torch::stable::new_empty(z, {0}, dtype);
  if (a.rows() == 0) {
    torch::stable::zero_(loss);
    torch::stable::zero_(stats);
    return {loss, stats, grad};
  }
  dispatch(z, [&](auto element) {
    using scalar_t = decltype(element);
    run<scalar_t, accumulator_t<scalar_t>>(a, nullptr, &loss, &stats, saves_grad ? &grad : nullptr);
  });
  return {loss, stats, grad};
}

// In the dtype of logits.
Tensor differentiate(const PairListArguments& a, const Tensor& upstream) {
  const torch::stable::accelerator::DeviceGuard guard(a.logits.get_device_index());
  Tensor grad = torch::stable::new_empty(a.logits, {a.rows(), a.columns()});
  if (a.rows() == 0) return grad;
  dispatch(a.logits, [&](auto element) {
    using scalar_t = decltype(element);
    run<scalar_t, scalar_t>(a, &upstream, nullptr, nullptr, &grad);
  });
  return grad;
}

}  // namespace
}  // namespace pairloss::cuda

STABLE_TORCH_LIBRARY_IMPL(pairloss, CUDA, m) {
  m.impl("pair_list_kl_hinge", TORCH_BOX(&pairloss::pair_list_kl_hinge<&pairloss::cuda::evaluate>));
  m.impl("pair_list_kl_hinge_backward",
         TORCH_BOX(&pairloss::pair_list_kl_hinge_backward<&pairloss::cuda::differentiate>));
}
