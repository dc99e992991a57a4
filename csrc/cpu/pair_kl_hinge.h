// The CPU kernel's interface: what pair_kl_hinge.cpp (the operator) and the white-box tests call,
// and what every instruction set's copy of pair_kl_hinge_kernel.h implements. No framework header:
// plain pointers.
#pragma once

#include <cstdint>

#include "cpu/labels.h"
#include "cpu/workers.h"

namespace pairloss::cpu {

enum class Element { float64, float32, float16, bfloat16 };

// The accumulation type T is double for float64 and float for the others.

// The batch, or the reference set.
struct Side {
  const void* logits = nullptr;  // (n, k) row-major
  int64_t n = 0;
  const void* sample_weights = nullptr;  // T (n,), or null for ones
  void* grad = nullptr;                  // T (n, k) row-major, or null where none is wanted
};

struct Problem {
  Side sides[2];  // the batch, and the reference set
  bool cross;     // pairs of the batch with the reference set, instead of pairs of the batch
  Element element;
  int64_t k;
  double margin;
  bool second_only;     // gradient through KL's second argument alone
  const Level* levels;  // over the rows of the batch, then of the reference set
  int64_t level_count;
  const int8_t* similarity;  // (n, n), in place of the ids of the only level; or null
};

// Per level, sums of w_i w_j l_ij over ordered pairs, which are those of Eq. 2 over unordered
// pairs.
struct PairSums {
  double similar = 0.0, dissimilar = 0.0;
  int64_t active = 0;
};

// The value alone, by level. row_losses: null, or (n,) receives, for every row of the batch, its
// sum over the levels and its partners of scale w_i w_j (l_ij + l_ji).
using ValueKernel = void(const Problem&, const Workers&, PairSums* sums, double* row_losses);

// The value and the gradient, to Side::grad, of
//
//   sum over levels and ordered pairs of scale w_i w_j l_ij               without row_weights, or
//   sum over levels and ordered pairs of scale w_i w_j (u_i + u_j) l_ij   with u = row_weights, T,
//
// (n,), for the rows of the batch, and 0 for those of the reference set: the gradient of row
// losses. With row_weights the sums are not defined.
using GradientKernel = void(const Problem&, const Workers&, const void* row_weights,
                            PairSums* sums);

struct Kernels {
  ValueKernel* value;
  GradientKernel* gradient;
};

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace amx {
extern const Kernels kernels;
}

// Work, in multiply-adds, below which one thread is faster than waking others.
constexpr int64_t kSerialWork = 6'000'000;

}  // namespace pairloss::cpu
