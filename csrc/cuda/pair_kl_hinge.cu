// pair_kl_hinge on CUDA: checks, tensors and dispatch. The kernels are in
// pair_kl_hinge_kernels.cuh.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "check.h"
#include "cuda/pair_kl_hinge_kernels.cuh"
#include "cuda/tensors.h"

namespace pairloss::cuda {
namespace {

void zero(Tensor tensor) {
  if (tensor.numel() > 0) torch::stable::zero_(tensor);
}

template <typename T>
const T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

template <typename scalar_t, typename out_t>
Evaluation<scalar_t, out_t> make_evaluation(const Arguments& a) {
  using acc_t = accumulator_t<scalar_t>;
  Evaluation<scalar_t, out_t> e{};
  e.rows = a.rows();
  e.classes = a.columns();
  e.levels = static_cast<int>(a.levels());
  e.logits = a.logits.const_data_ptr<scalar_t>();
  e.labels = pointer<int64_t>(a.labels);
  e.similarity = pointer<int8_t>(a.similarity);
  e.ref_rows = a.ref_rows();
  e.ref_logits = pointer<scalar_t>(a.ref_logits);
  e.ref_labels = pointer<int64_t>(a.ref_labels);
  e.weights = pointer<acc_t>(a.sample_weights);
  e.ref_weights = pointer<acc_t>(a.ref_sample_weights);
  e.level_weights = pointer<double>(a.level_weights);
  e.ignore_index = a.ignore_index;
  e.margin = a.margin;
  e.similar_weight = a.similar_weight;
  e.dissimilar_weight = a.dissimilar_weight;
  e.balance = a.balance;
  e.gradient = static_cast<Gradient>(a.gradient);
  e.reduction = static_cast<Reduction>(a.reduction);
  e.precision = static_cast<Precision>(a.precision);
  return e;
}

// The allocator keeps the workspace alive for the kernels queued here: it is reused in the order of
// the stream.
template <typename scalar_t, typename out_t>
void enqueue(const Evaluation<scalar_t, out_t>& evaluation, const Tensor& logits) {
  STD_TORCH_CHECK(evaluation.classes <= kMostClasses, "logits: expected at most ", kMostClasses,
                  " classes on CUDA, got ", evaluation.classes);
  const Tensor workspace = new_workspace(logits, workspace_bytes(evaluation));
  run_pair_kl_hinge(evaluation, workspace.mutable_data_ptr(),
                    current_stream(logits.get_device_index()));
}

bool has_pairs(const Arguments& a) { return a.rows() > 0 && (!a.ref_logits || a.ref_rows() > 0); }

// (rows, K) if it is wanted, else (0,).
Tensor new_gradient(const Arguments& a, bool wanted, int64_t rows, ScalarType type) {
  return wanted ? torch::stable::new_empty(a.logits, {rows, a.columns()}, type)
                : torch::stable::new_empty(a.logits, {0}, type);
}

Results evaluate(const Arguments& a) {
  const Tensor& logits = a.logits;
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());

  const ScalarType acc_type = accumulation_type(logits);
  Tensor loss = a.per_row() ? torch::stable::new_empty(logits, {a.rows()}, acc_type)
                            : torch::stable::new_empty(logits, {}, acc_type);
  Tensor stats = torch::stable::new_empty(logits, {kStats, a.levels()}, ScalarType::Double);
  const bool with_grad = a.with_grad && !a.per_row();
  const bool with_ref_grad = a.with_ref_grad && a.ref_logits && !a.per_row();
  Tensor grad = new_gradient(a, with_grad, a.rows(), acc_type);
  Tensor ref_grad = new_gradient(a, with_ref_grad, a.ref_rows(), acc_type);
  if (!has_pairs(a)) {
    for (const Tensor& result : {loss, stats, grad, ref_grad}) zero(result);
    return {loss, stats, grad, ref_grad};
  }

  dispatch(logits, [&](auto element) {
    using scalar_t = decltype(element);
    using acc_t = accumulator_t<scalar_t>;
    auto evaluation = make_evaluation<scalar_t, acc_t>(a);
    evaluation.loss = loss.mutable_data_ptr<acc_t>();
    evaluation.stats = stats.mutable_data_ptr<double>();
    if (with_grad) evaluation.grad = grad.mutable_data_ptr<acc_t>();
    if (with_ref_grad) evaluation.ref_grad = ref_grad.mutable_data_ptr<acc_t>();
    enqueue(evaluation, logits);
  });
  return {loss, stats, grad, ref_grad};
}

// The gradients of reduction none for the upstream gradient (N,), in the dtype of logits.
Gradients differentiate(const Arguments& a, const Tensor& upstream) {
  const Tensor& logits = a.logits;
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());

  const bool with_ref_grad = a.with_ref_grad && a.ref_logits;
  Tensor grad = new_gradient(a, a.with_grad, a.rows(), logits.scalar_type());
  Tensor ref_grad = new_gradient(a, with_ref_grad, a.ref_rows(), logits.scalar_type());
  if (!has_pairs(a)) {
    for (const Tensor& result : {grad, ref_grad}) zero(result);
    return {grad, ref_grad};
  }
  if (!a.with_grad && !with_ref_grad) return {grad, ref_grad};

  dispatch(logits, [&](auto element) {
    using scalar_t = decltype(element);
    auto evaluation = make_evaluation<scalar_t, scalar_t>(a);
    evaluation.upstream = upstream.const_data_ptr<accumulator_t<scalar_t>>();
    if (a.with_grad) evaluation.grad = grad.mutable_data_ptr<scalar_t>();
    if (with_ref_grad) evaluation.ref_grad = ref_grad.mutable_data_ptr<scalar_t>();
    enqueue(evaluation, logits);
  });
  return {grad, ref_grad};
}

}  // namespace
}  // namespace pairloss::cuda

STABLE_TORCH_LIBRARY_IMPL(pairloss, CUDA, m) {
  m.impl("pair_kl_hinge", TORCH_BOX(&pairloss::pair_kl_hinge<&pairloss::cuda::evaluate>));
  m.impl("pair_kl_hinge_backward",
         TORCH_BOX(&pairloss::pair_kl_hinge_backward<&pairloss::cuda::differentiate>));
}
