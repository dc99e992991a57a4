// The loss and its gradient on the CPU, for one instruction set. In four stages:
//
//   rows     P, L and h of every row, in an order of their own       labels.h, rows.h, batch.h
//   means    similar pairs in closed form                            similar.h
//   tiles    dissimilar pairs, tile by tile in a fixed order         schedule.h
//            active or not: one bit each                certificates.h, tile.h, amx.h, vnni.h
//            which of them are dissimilar, in which level            relation.h
//            sums of L and P over the bits                           selected_sums.h, selected.h
//            or all pairs of a tile at once, where they are on one side of the margin
//   finish   the loss and the gradient of every row from these sums  pair_kl_hinge_gradient.h
//
// With a_ij = 1 where the dissimilar pair (i, j) is active,
//
//   W_i = sum_j a_ij (L_i - L_j),   V_i = sum_j a_ji (P_i - P_j),   F_i = n (L_i - mean L) - W_i,
//   hinge:      sum_j a_ij (m - D_ij) = m sum_j a_ij - P_i . W_i,   so D itself is never kept
//   gradient:   dz_i = P_i * (F_i - P_i . F_i) + n (P_i - mean P) - V_i
//
// and without the first summand if only KL's second argument counts. The value alone needs no sums
// of L and P, but D: pair_kl_hinge_value.h.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {
namespace {

void value(const Problem& problem, const Workers& workers, PairSums* sums, double* row_losses) {
  problem.element == Element::float64 ? evaluate<double>(problem, workers, sums, row_losses)
                                      : evaluate<float>(problem, workers, sums, row_losses);
}

void gradient(const Problem& problem, const Workers& workers, const void* row_weights,
              PairSums* sums) {
  problem.element == Element::float64 ? differentiate<double>(problem, workers, row_weights, sums)
                                      : differentiate<float>(problem, workers, row_weights, sums);
}

}  // namespace

const Kernels kernels{value, gradient};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
