// The arguments of pair_list_kl_hinge, and the checks that every backend repeats (see check.h).
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "check.h"
#include "pair_math.h"

namespace pairloss {

// In the order of the schema (schema.cpp), which describes them.
struct PairListArguments {
  Tensor logits, pairs, similar;
  std::optional<Tensor> pair_weights;
  double margin;
  int64_t gradient, reduction;
  double similar_weight, dissimilar_weight;
  bool balance, with_grad;

  int64_t rows() const { return logits.size(0); }
  int64_t columns() const { return logits.size(1); }
  int64_t count() const { return pairs.size(0); }
  bool per_row() const { return reduction == int64_t(Reduction::none); }
  bool second_only() const { return gradient == int64_t(Gradient::second); }
};

#define PAIRLOSS_LIST_CHECK(condition, ...) \
  STD_TORCH_CHECK(condition, "pairloss::pair_list_kl_hinge: ", __VA_ARGS__)

// Checked but for the indices, and contiguous.
inline PairListArguments checked(PairListArguments a) {
  const Tensor& z = a.logits;
  const auto same_place = [&](const Tensor& x) { return x.device() == z.device(); };
  check_shared("pairloss::pair_list_kl_hinge", z, a.margin, a.gradient, a.reduction);
  PAIRLOSS_LIST_CHECK(a.pairs.scalar_type() == ScalarType::Long && a.pairs.dim() == 2 &&
                          a.pairs.size(1) == 2 && same_place(a.pairs),
                      "pairs: expected shape (E, 2), int64, on the device of logits");
  PAIRLOSS_LIST_CHECK(a.similar.scalar_type() == ScalarType::Bool && a.similar.dim() == 1 &&
                          a.similar.size(0) == a.count() && same_place(a.similar),
                      "similar: expected shape (", a.count(), ",), bool, on the device of logits");
  if (a.pair_weights) {
    PAIRLOSS_LIST_CHECK(a.pair_weights->scalar_type() == accumulation_type(z) &&
                            a.pair_weights->dim() == 1 && a.pair_weights->size(0) == a.count() &&
                            same_place(*a.pair_weights),
                        "pair_weights: expected shape (", a.count(),
                        ",) in the dtype of the loss, on the device of logits");
  }

  a.logits = dense(a.logits);
  a.pairs = dense(a.pairs);
  a.similar = dense(a.similar);
  if (a.pair_weights) a.pair_weights = dense(*a.pair_weights);
  return a;
}

// The boxed operators, around what a backend makes of the arguments.
using PairListResults = std::tuple<Tensor, Tensor, Tensor>;  // loss, stats, grad

template <PairListResults (*kEvaluate)(const PairListArguments&)>
PairListResults pair_list_kl_hinge(const Tensor& logits, const Tensor& pairs, const Tensor& similar,
                                   const std::optional<Tensor>& pair_weights, double margin,
                                   int64_t gradient, int64_t reduction, double similar_weight,
                                   double dissimilar_weight, bool balance, bool with_grad) {
  return kEvaluate(
      checked(PairListArguments{logits, pairs, similar, pair_weights, margin, gradient, reduction,
                                similar_weight, dissimilar_weight, balance, with_grad}));
}

template <Tensor (*kDifferentiate)(const PairListArguments&, const Tensor& upstream)>
Tensor pair_list_kl_hinge_backward(const Tensor& grad_output, const Tensor& logits,
                                   const Tensor& pairs, const Tensor& similar,
                                   const std::optional<Tensor>& pair_weights, double margin,
                                   int64_t gradient, int64_t /*reduction*/, double similar_weight,
                                   double dissimilar_weight, bool balance, bool with_grad) {
  const PairListArguments arguments = checked(PairListArguments{
      logits, pairs, similar, pair_weights, margin, gradient, int64_t(Reduction::none),
      similar_weight, dissimilar_weight, balance, with_grad});
  PAIRLOSS_LIST_CHECK(grad_output.dim() == 1 && grad_output.size(0) == logits.size(0) &&
                          grad_output.device() == logits.device(),
                      "grad_output: expected shape (", logits.size(0),
                      ",) on the device of logits");
  // loss.sum() sends an expanded scalar, of stride 0.
  return kDifferentiate(arguments, torch::stable::contiguous(
                                       torch::stable::to(grad_output, accumulation_type(logits))));
}

}  // namespace pairloss
