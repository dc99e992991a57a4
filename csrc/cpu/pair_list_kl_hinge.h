// The interface of the CPU kernel for lists of pairs: what pair_list_kl_hinge.cpp (the operator)
// calls, and what every instruction set's copy of pair_list_kl_hinge_kernel.h implements.
#pragma once

#include <cstdint>

#include "cpu/incidence.h"
#include "cpu/pair_kl_hinge.h"

namespace pairloss::cpu {

// The accumulation type T is double for float64 and float for the others.
struct PairListProblem {
  const void* logits;  // (n, k) row-major
  Element element;
  int64_t n, k;
  double margin;
  bool second_only;  // gradient through KL's second argument alone
  const Incidence* incidence;
  const void* pair_weights;                // T, by number of the pair; null: all 1
  double similar_scale, dissimilar_scale;  // of l_ij, in losses and gradients
};

// What one row sees: sums over its partners j.
struct RowSums {
  double similar = 0.0, dissimilar = 0.0;  // of scale * weight * l_ij
  double both_ways = 0.0;                  // of scale * weight * (l_ij + l_ji), of both kinds
  int64_t active = 0;                      // dissimilar j with KL(P_i || P_j) < margin
};

// sums: (n,). grad: T (n, k), or null: the gradient with respect to the logits of the sum over all
// pairs of scale * weight * (l_ij + l_ji); with row_weights u, T (n,), of the sum over rows of
// u_i * both_ways_i.
using PairListKernel = void(const PairListProblem&, const Workers&, const void* row_weights,
                            RowSums* sums, void* grad);

namespace baseline {
extern PairListKernel* const pair_list_kernel;
}
namespace avx2 {
extern PairListKernel* const pair_list_kernel;
}
namespace avx512 {
extern PairListKernel* const pair_list_kernel;
}

}  // namespace pairloss::cpu
