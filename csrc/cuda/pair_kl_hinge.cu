// pair_kl_hinge on CUDA: checks, tensors and dispatch. The kernels are in
// pair_kl_hinge_kernels.cuh.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <tuple>

#include "check.h"
#include "cuda/pair_kl_hinge_kernels.cuh"

namespace pairloss::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// body(scalar_t()) for the element type of the logits.
template <typename Body>
void dispatch(const Tensor& logits, Body body) {
  switch (logits.scalar_type()) {
    case ScalarType::Double:
      return body(double());
    case ScalarType::Float:
      return body(float());
    case ScalarType::Half:
      return body(torch::headeronly::Half());
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16());
    default:
      STD_TORCH_CHECK(false, "check_arguments lets no other type pass");
  }
}

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

template <typename scalar_t, typename out_t>
Arguments<scalar_t, out_t> make_arguments(const Tensor& dense_logits, const Tensor& dense_labels,
                                          double margin, int64_t gradient, Reduction reduction,
                                          int64_t ignore_index) {
  Arguments<scalar_t, out_t> arguments{};
  arguments.logits = dense_logits.const_data_ptr<scalar_t>();
  arguments.labels = dense_labels.const_data_ptr<int64_t>();
  arguments.ignore_index = ignore_index;
  arguments.margin = margin;
  arguments.gradient = static_cast<Gradient>(gradient);
  arguments.reduction = reduction;
  return arguments;
}

// The allocator keeps the workspace alive for the kernels queued here: it is reused in the order of
// the stream.
template <typename scalar_t, typename out_t>
void enqueue(const Arguments<scalar_t, out_t>& arguments, const Tensor& logits) {
  using acc_t = accumulator_t<scalar_t>;
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const Plan plan = make_plan<acc_t>(rows, classes, default_chunk_rows(rows, classes));
  const int64_t bytes = workspace_bytes<acc_t>(plan, arguments.gradient, arguments.grad != nullptr);
  const Tensor workspace = torch::stable::new_empty(logits, {bytes}, ScalarType::Byte);
  run_pair_kl_hinge(arguments, plan, workspace.mutable_data_ptr(),
                    current_stream(logits.get_device_index()));
}

bool is_plain(const pairloss::Arguments& a) {
  return a.labels && a.levels() == 1 && !a.ref_logits && !a.sample_weights && !a.level_weights &&
         a.similar_weight == 1.0 && a.dissimilar_weight == 1.0 && !a.balance;
}

Results evaluate(const pairloss::Arguments& a) {
  PAIRLOSS_CHECK(is_plain(a), "not yet in the fused kernels");
  const Tensor& logits = a.logits;
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());

  const int64_t rows = a.rows(), classes = a.columns();
  const bool per_row = a.per_row();
  const bool wants_grad = a.with_grad && !per_row;
  const ScalarType acc_type = accumulation_type(logits);
  Tensor loss = per_row ? torch::stable::new_empty(logits, {rows}, acc_type)
                        : torch::stable::new_empty(logits, {}, acc_type);
  Tensor stats = torch::stable::new_empty(logits, {kStats, 1}, ScalarType::Double);
  Tensor grad = wants_grad ? torch::stable::new_empty(logits, {rows, classes}, acc_type)
                           : torch::stable::new_empty(logits, {0}, acc_type);
  Tensor ref_grad = torch::stable::new_empty(logits, {0}, acc_type);
  if (rows == 0) {
    torch::stable::zero_(loss);
    torch::stable::zero_(stats);
    return {loss, stats, grad, ref_grad};
  }

  dispatch(logits, [&](auto element) {
    using scalar_t = decltype(element);
    using acc_t = accumulator_t<scalar_t>;
    auto arguments =
        make_arguments<scalar_t, acc_t>(logits, *a.labels, a.margin, a.gradient,
                                        static_cast<Reduction>(a.reduction), a.ignore_index);
    arguments.loss = loss.mutable_data_ptr<acc_t>();
    arguments.stats = stats.mutable_data_ptr<double>();
    if (wants_grad) arguments.grad = grad.mutable_data_ptr<acc_t>();
    enqueue(arguments, logits);
  });
  return {loss, stats, grad, ref_grad};
}

// The gradient of reduction none for the upstream gradient (N,), in the dtype of logits.
Gradients differentiate(const pairloss::Arguments& a, const Tensor& upstream) {
  PAIRLOSS_CHECK(is_plain(a), "not yet in the fused kernels");
  const Tensor& logits = a.logits;
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());

  Tensor grad = torch::stable::new_empty(logits, {a.rows(), a.columns()});
  Tensor ref_grad = torch::stable::new_empty(logits, {0});
  if (a.rows() == 0) return {grad, ref_grad};

  dispatch(logits, [&](auto element) {
    using scalar_t = decltype(element);
    auto arguments = make_arguments<scalar_t, scalar_t>(logits, *a.labels, a.margin, a.gradient,
                                                        Reduction::none, a.ignore_index);
    arguments.upstream = upstream.const_data_ptr<accumulator_t<scalar_t>>();
    arguments.grad = grad.mutable_data_ptr<scalar_t>();
    enqueue(arguments, logits);
  });
  return {grad, ref_grad};
}

}  // namespace
}  // namespace pairloss::cuda

STABLE_TORCH_LIBRARY_IMPL(pairloss, CUDA, m) {
  m.impl("pair_kl_hinge", TORCH_BOX(&pairloss::pair_kl_hinge<&pairloss::cuda::evaluate>));
  m.impl("pair_kl_hinge_backward", TORCH_BOX(&pairloss::pair_kl_hinge_backward<&pairloss::cuda::differentiate>));
}
