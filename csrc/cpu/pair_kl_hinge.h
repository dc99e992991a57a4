// The CPU kernel's interface: what pair_kl_hinge.cpp (the operator) and the white-box tests call,
// and what every instruction set's copy of pair_kl_hinge_kernel.h implements. No framework header:
// plain pointers.
#pragma once

#include <cstdint>

#include "cpu/classes.h"
#include "cpu/workers.h"

namespace pairloss::cpu {

enum class Element { float64, float32, float16, bfloat16 };

// The accumulation type T is double for float64 and float for the others.
struct Problem {
  const void* logits;  // (n, k) row-major
  Element element;
  int64_t n, k;
  double margin;
  bool second_only;  // gradient through KL's second argument alone
  const Classes* classes;
};

// Sums of l_ij over ordered pairs i != j, which are those of Eq. 2 over unordered pairs.
struct PairSums {
  double similar = 0.0, dissimilar = 0.0;
  int64_t active = 0;
};

// The value alone. row_losses: null, or (n,) receives sum_j (l_ij + l_ji) of every row.
using ValueKernel = PairSums(const Problem&, const Workers&, double* row_losses);

// The value and the gradient of
//
//   scale * sum_{i != j} l_ij               without row_weights, or
//   scale * sum_{i != j} (u_i + u_j) l_ij   with row_weights u, T (n,): the gradient of row losses
//
// with respect to the logits into grad: T (n, k) row-major. With row_weights the returned sums are
// not defined.
using GradientKernel = PairSums(const Problem&, const Workers&, double scale,
                                const void* row_weights, void* grad);

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
constexpr int64_t kSerialWork = 1'000'000;

}  // namespace pairloss::cpu
