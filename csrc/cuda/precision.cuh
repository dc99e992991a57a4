// What the tensor cores multiply, by the Precision that is asked for (pair_math.h).
//
//            divergences                  the gradient's sums
//   fp32     three bf16, six products     three bf16
//   tf32x3   two tf32, three products     three bf16
//   bf16x3   two bf16, three products     two bf16
//   tf32     one tf32, one product        two bf16
//
// The sums take bf16 throughout, because most weights of pairs are exact in it: a product with each
// part is then all there is, and two parts hold more than a tf32.
#pragma once

#include "cuda/launch.h"
#include "cuda/planes.cuh"

namespace pairloss::cuda {
namespace {

// Slices of 16 classes, but of 8 for two tf32: what is staged of them leaves room for two blocks on
// a multiprocessor.
struct Fp32 {
  using Factors = Planes<Bfloat16, 3>;
  using SumFactors = Planes<Bfloat16, 3>;
};

struct Tf32x3 {
  using Factors = Planes<Tfloat32, 2>;
  using SumFactors = Planes<Bfloat16, 3>;
};

struct Bf16x3 {
  using Factors = Planes<Bfloat16, 2>;
  using SumFactors = Planes<Bfloat16, 2>;
};

struct Tf32 {
  using Factors = Planes<Tfloat32, 1, 2>;
  using SumFactors = Planes<Bfloat16, 2>;
};

// body(mode) for a precision.
template <typename Body>
void dispatch_precision(Precision precision, Body body) {
  switch (precision) {
    case Precision::fp32:
      return body(Fp32());
    case Precision::tf32x3:
      return body(Tf32x3());
    case Precision::bf16x3:
      return body(Bf16x3());
    case Precision::tf32:
      return body(Tf32());
  }
}

}  // namespace
}  // namespace pairloss::cuda
