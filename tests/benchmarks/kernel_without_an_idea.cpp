// One kernel for ctypes, to be compiled with any idea of csrc/cpu/ideas.h switched off
// (test_ideas.py). TESTED_ISA is its namespace.
#include "cpu/pair_kl_hinge.h"

// The loss and its gradient, of a batch in float32; scale: of every pair.
extern "C" [[gnu::visibility("default")]] double differentiate(const float* logits,
                                                               const int64_t* labels, int64_t n,
                                                               int64_t k, double margin,
                                                               double scale, float* grad) {
  using namespace pairloss::cpu;
  Level level = make_level(labels, n, nullptr, 0, false, 1, -100);
  level.similar_scale = level.dissimilar_scale = scale;
  Problem problem{};
  problem.sides[0] = {logits, n, nullptr, grad};
  problem.element = Element::float32;
  problem.k = k;
  problem.margin = margin;
  problem.levels = &level;
  problem.level_count = 1;
  PairSums sums;
  TESTED_ISA::kernels.gradient(problem, Workers{}, nullptr, &sums);
  return scale * (sums.similar + sums.dissimilar);
}
