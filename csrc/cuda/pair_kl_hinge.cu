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

// (loss, stats, grad), as schema.cpp describes them.
std::tuple<Tensor, Tensor, Tensor> pair_kl_hinge(const Tensor& logits, const Tensor& labels,
                                                 double margin, int64_t gradient, int64_t reduction,
                                                 int64_t ignore_index, bool with_grad) {
  check_arguments("pair_kl_hinge", logits, labels, margin, gradient, reduction);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());

  const int64_t rows = logits.size(0), classes = logits.size(1);
  const bool per_row = static_cast<Reduction>(reduction) == Reduction::none;
  const bool wants_grad = with_grad && !per_row;
  const ScalarType acc_type = accumulation_type(logits);
  Tensor loss = per_row ? torch::stable::new_empty(logits, {rows}, acc_type)
                        : torch::stable::new_empty(logits, {}, acc_type);
  Tensor stats = torch::stable::new_empty(logits, {kStats}, ScalarType::Double);
  Tensor grad = wants_grad ? torch::stable::new_empty(logits, {rows, classes}, acc_type)
                           : torch::stable::new_empty(logits, {0}, acc_type);
  if (rows == 0) {
    torch::stable::zero_(loss);
    torch::stable::zero_(stats);
    return {loss, stats, grad};
  }

  const Tensor dense = torch::stable::contiguous(logits), ids = torch::stable::contiguous(labels);
  dispatch(dense, [&](auto element) {
    using scalar_t = decltype(element);
    using acc_t = accumulator_t<scalar_t>;
    auto arguments = make_arguments<scalar_t, acc_t>(
        dense, ids, margin, gradient, static_cast<Reduction>(reduction), ignore_index);
    arguments.loss = loss.mutable_data_ptr<acc_t>();
    arguments.stats = stats.mutable_data_ptr<double>();
    if (wants_grad) arguments.grad = grad.mutable_data_ptr<acc_t>();
    enqueue(arguments, dense);
  });
  return {loss, stats, grad};
}

// The gradient of reduction none for the upstream gradient grad_output (N,), in the dtype of
// logits.
Tensor pair_kl_hinge_backward(const Tensor& grad_output, const Tensor& logits, const Tensor& labels,
                              double margin, int64_t gradient, int64_t ignore_index) {
  check_arguments("pair_kl_hinge_backward", logits, labels, margin, gradient,
                  static_cast<int64_t>(Reduction::none));
  const int64_t rows = logits.size(0), classes = logits.size(1);
  STD_TORCH_CHECK(grad_output.device() == logits.device() && grad_output.dim() == 1 &&
                      grad_output.size(0) == rows,
                  "pairloss::pair_kl_hinge_backward: grad_output: expected shape (", rows,
                  ",) on the device of logits");
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());

  Tensor grad = torch::stable::new_empty(logits, {rows, classes});
  if (rows == 0) return grad;

  const Tensor dense = torch::stable::contiguous(logits), ids = torch::stable::contiguous(labels);
  // loss.sum() sends an expanded scalar, of stride 0.
  const Tensor upstream =
      torch::stable::contiguous(torch::stable::to(grad_output, accumulation_type(logits)));
  dispatch(dense, [&](auto element) {
    using scalar_t = decltype(element);
    auto arguments = make_arguments<scalar_t, scalar_t>(dense, ids, margin, gradient,
                                                        Reduction::none, ignore_index);
    arguments.upstream = upstream.const_data_ptr<accumulator_t<scalar_t>>();
    arguments.grad = grad.mutable_data_ptr<scalar_t>();
    enqueue(arguments, dense);
  });
  return grad;
}

}  // namespace
}  // namespace pairloss::cuda

STABLE_TORCH_LIBRARY_IMPL(pairloss, CUDA, m) {
  m.impl("pair_kl_hinge", TORCH_BOX(&pairloss::cuda::pair_kl_hinge));
  m.impl("pair_kl_hinge_backward", TORCH_BOX(&pairloss::cuda::pair_kl_hinge_backward));
}
