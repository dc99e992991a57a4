// The operators' arguments, and the checks that every backend repeats. Python has raised ValueError
// and TypeError before; these are the backstop for callers of torch.ops.pairloss.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "pair_math.h"

namespace pairloss {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// In the order of the schema (schema.cpp), which describes them.
struct Arguments {
  Tensor logits;
  std::optional<Tensor> labels, similarity, ref_logits, ref_labels, sample_weights,
      ref_sample_weights, level_weights;
  double margin;
  int64_t gradient, reduction, ignore_index;
  double similar_weight, dissimilar_weight;
  bool balance;
  int64_t precision;
  bool with_grad, with_ref_grad;

  int64_t rows() const { return logits.size(0); }
  int64_t columns() const { return logits.size(1); }
  int64_t levels() const { return labels && labels->dim() == 2 ? labels->size(1) : 1; }
  int64_t ref_rows() const { return ref_logits ? ref_logits->size(0) : 0; }
  bool per_row() const { return reduction == int64_t(Reduction::none); }
  bool second_only() const { return gradient == int64_t(Gradient::second); }
};

inline ScalarType accumulation_type(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// An uninitialised tensor on the device of another: past the dispatcher, which takes longer than a
// small batch.
inline Tensor empty_like_device(const Tensor& of, std::initializer_list<int64_t> sizes,
                                ScalarType dtype) {
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(of.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(of.get(), &device_index));
  int64_t strides[4] = {}, stride = 1;
  const auto count = static_cast<int64_t>(sizes.size());
  for (int64_t d = count; d-- > 0;) {
    strides[d] = stride;
    const int64_t size = sizes.begin()[d];
    stride *= size > 1 ? size : 1;
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      count, sizes.begin(), strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      device_index, &handle));
  return Tensor(handle);
}

inline Tensor dense(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// What every operator checks.
inline void check_shared(const char* op, const Tensor& logits, double margin, int64_t gradient,
                         int64_t reduction) {
  const ScalarType dtype = logits.scalar_type();
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0, op,
                  ": logits: expected shape (N, K) with K > 0, got ", logits.dim(), " dimensions");
  STD_TORCH_CHECK(dtype == ScalarType::Double || dtype == ScalarType::Float ||
                      dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                  op, ": logits: expected float64, float32, float16 or bfloat16");
  STD_TORCH_CHECK(margin >= 0.0, op, ": margin: expected a value >= 0, got ", margin);
  STD_TORCH_CHECK(gradient == int64_t(Gradient::both) || gradient == int64_t(Gradient::second), op,
                  ": gradient: expected 0 (both) or 1 (second), got ", gradient);
  STD_TORCH_CHECK(reduction >= int64_t(Reduction::none) && reduction <= int64_t(Reduction::sum), op,
                  ": reduction: expected 0 (none), 1 (mean) or 2 (sum), got ", reduction);
}

#define PAIRLOSS_CHECK(condition, ...) \
  STD_TORCH_CHECK(condition, "pairloss::pair_kl_hinge: ", __VA_ARGS__)

// Checked, and contiguous.
inline Arguments checked(Arguments a) {
  const Tensor& z = a.logits;
  const auto same_place = [&](const Tensor& x) { return x.device() == z.device(); };
  const ScalarType dtype = z.scalar_type();
  check_shared("pairloss::pair_kl_hinge", z, a.margin, a.gradient, a.reduction);
  PAIRLOSS_CHECK(a.precision >= int64_t(Precision::fp32) && a.precision <= int64_t(Precision::tf32),
                 "precision: expected 0 (fp32), 1 (tf32x3), 2 (bf16x3) or 3 (tf32), got ",
                 a.precision);
  PAIRLOSS_CHECK(a.labels.has_value() != a.similarity.has_value(),
                 "expected either labels or similarity");
  const auto check_labels = [&](const Tensor& labels, int64_t rows, const char* name) {
    PAIRLOSS_CHECK(labels.scalar_type() == ScalarType::Long, name, ": expected int64");
    PAIRLOSS_CHECK(
        (labels.dim() == 1 || (labels.dim() == 2 && labels.size(1) > 0)) && labels.size(0) == rows,
        name, ": expected shape (", rows, ",) or (", rows, ", G)");
    PAIRLOSS_CHECK(same_place(labels), name, ": expected the device of logits");
  };
  if (a.labels) check_labels(*a.labels, a.rows(), "labels");
  if (a.similarity) {
    PAIRLOSS_CHECK(a.similarity->scalar_type() == ScalarType::Char, "similarity: expected int8");
    PAIRLOSS_CHECK(a.similarity->dim() == 2 && a.similarity->size(0) == a.rows() &&
                       a.similarity->size(1) == a.rows() && same_place(*a.similarity),
                   "similarity: expected shape (", a.rows(), ", ", a.rows(),
                   ") on the device of logits");
  }
  PAIRLOSS_CHECK(a.ref_logits.has_value() == a.ref_labels.has_value(),
                 "expected ref_logits and ref_labels, or neither");
  if (a.ref_logits) {
    PAIRLOSS_CHECK(a.labels.has_value(), "ref_logits: expected labels, not similarity");
    PAIRLOSS_CHECK(a.ref_logits->dim() == 2 && a.ref_logits->size(1) == a.columns() &&
                       a.ref_logits->scalar_type() == dtype && same_place(*a.ref_logits),
                   "ref_logits: expected shape (M, ", a.columns(),
                   "), and the dtype and device of logits");
    check_labels(*a.ref_labels, a.ref_rows(), "ref_labels");
    PAIRLOSS_CHECK((a.ref_labels->dim() == 2 ? a.ref_labels->size(1) : 1) == a.levels(),
                   "ref_labels: expected ", a.levels(), " levels");
  }
  const auto check_weights = [&](const std::optional<Tensor>& weights, int64_t rows,
                                 const char* name) {
    if (!weights) return;
    PAIRLOSS_CHECK(weights->scalar_type() == accumulation_type(z) && weights->dim() == 1 &&
                       weights->size(0) == rows && same_place(*weights),
                   name, ": expected shape (", rows,
                   ",) in the dtype of the loss, on the device of logits");
  };
  check_weights(a.sample_weights, a.rows(), "sample_weights");
  check_weights(a.ref_sample_weights, a.ref_rows(), "ref_sample_weights");
  if (a.level_weights) {
    PAIRLOSS_CHECK(a.level_weights->is_cpu() &&
                       a.level_weights->scalar_type() == ScalarType::Double &&
                       a.level_weights->dim() == 1 && a.level_weights->size(0) == a.levels(),
                   "level_weights: expected shape (", a.levels(), ",), float64, on the CPU");
  }

  a.logits = dense(a.logits);
  for (auto* x : {&a.labels, &a.similarity, &a.ref_logits, &a.ref_labels, &a.sample_weights,
                  &a.ref_sample_weights, &a.level_weights}) {
    if (*x) *x = dense(**x);
  }
  return a;
}

// The boxed operators, around what a backend makes of the arguments.
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // loss, stats, grad, ref_grad
using Gradients = std::tuple<Tensor, Tensor>;                // grad, ref_grad

template <Results (*kEvaluate)(const Arguments&)>
Results pair_kl_hinge(
    const Tensor& logits, const std::optional<Tensor>& labels,
    const std::optional<Tensor>& similarity, const std::optional<Tensor>& ref_logits,
    const std::optional<Tensor>& ref_labels, const std::optional<Tensor>& sample_weights,
    const std::optional<Tensor>& ref_sample_weights, const std::optional<Tensor>& level_weights,
    double margin, int64_t gradient, int64_t reduction, int64_t ignore_index, double similar_weight,
    double dissimilar_weight, bool balance, int64_t precision, bool with_grad, bool with_ref_grad) {
  return kEvaluate(
      checked({logits, labels, similarity, ref_logits, ref_labels, sample_weights,
               ref_sample_weights, level_weights, margin, gradient, reduction, ignore_index,
               similar_weight, dissimilar_weight, balance, precision, with_grad, with_ref_grad}));
}

template <Gradients (*kDifferentiate)(const Arguments&, const Tensor& upstream)>
Gradients pair_kl_hinge_backward(
    const Tensor& grad_output, const Tensor& logits, const std::optional<Tensor>& labels,
    const std::optional<Tensor>& similarity, const std::optional<Tensor>& ref_logits,
    const std::optional<Tensor>& ref_labels, const std::optional<Tensor>& sample_weights,
    const std::optional<Tensor>& ref_sample_weights, const std::optional<Tensor>& level_weights,
    double margin, int64_t gradient, int64_t /*reduction*/, int64_t ignore_index,
    double similar_weight, double dissimilar_weight, bool balance, int64_t precision,
    bool with_grad, bool with_ref_grad) {
  const Arguments arguments = checked(
      {logits, labels, similarity, ref_logits, ref_labels, sample_weights, ref_sample_weights,
       level_weights, margin, gradient, int64_t(Reduction::none), ignore_index, similar_weight,
       dissimilar_weight, balance, precision, with_grad, with_ref_grad});
  PAIRLOSS_CHECK(grad_output.dim() == 1 && grad_output.size(0) == logits.size(0) &&
                     grad_output.device() == logits.device(),
                 "grad_output: expected shape (", logits.size(0), ",) on the device of logits");
  // loss.sum() sends an expanded scalar, of stride 0.
  return kDifferentiate(arguments, torch::stable::contiguous(
                                       torch::stable::to(grad_output, accumulation_type(logits))));
}

}  // namespace pairloss
