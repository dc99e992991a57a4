// The checks that every backend repeats. Python has raised ValueError and TypeError before; these
// are the backstop for callers of torch.ops.pairloss.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#include "pair_math.h"

namespace pairloss {

inline torch::headeronly::ScalarType accumulation_type(const torch::stable::Tensor& logits) {
  using torch::headeronly::ScalarType;
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_arguments(const char* op, const torch::stable::Tensor& logits,
                            const torch::stable::Tensor& labels, double margin, int64_t gradient,
                            int64_t reduction) {
  using torch::headeronly::ScalarType;
  const ScalarType dtype = logits.scalar_type();
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0, "pairloss::", op,
                  ": logits: expected shape (N, K) with K > 0, got ", logits.dim(), " dimensions");
  STD_TORCH_CHECK(dtype == ScalarType::Double || dtype == ScalarType::Float ||
                      dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                  "pairloss::", op, ": logits: expected float64, float32, float16 or bfloat16");
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, "pairloss::", op,
                  ": labels: expected int64");
  STD_TORCH_CHECK(labels.dim() == 1 && labels.size(0) == logits.size(0), "pairloss::", op,
                  ": labels: expected shape (", logits.size(0), ",)");
  STD_TORCH_CHECK(labels.device() == logits.device(), "pairloss::", op,
                  ": labels: expected the device of logits");
  STD_TORCH_CHECK(margin >= 0.0, "pairloss::", op, ": margin: expected a value >= 0, got ", margin);
  STD_TORCH_CHECK(gradient == int64_t(Gradient::both) || gradient == int64_t(Gradient::second),
                  "pairloss::", op, ": gradient: expected 0 (both) or 1 (second), got ", gradient);
  STD_TORCH_CHECK(reduction >= int64_t(Reduction::none) && reduction <= int64_t(Reduction::sum),
                  "pairloss::", op, ": reduction: expected 0 (none), 1 (mean) or 2 (sum), got ",
                  reduction);
}

}  // namespace pairloss
