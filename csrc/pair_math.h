// The formulas of the loss, once, for the CPU and the CUDA kernels. Plain C++: no framework, no
// CUDA header.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define PAIRLOSS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PAIRLOSS_HOST_DEVICE inline
#endif

namespace pairloss {

// The codes of the operator's integer arguments (see schema.cpp).
enum class Gradient : int64_t { both = 0, second = 1 };
enum class Reduction : int64_t { none = 0, mean = 1, sum = 2 };
// The least accuracy that is asked for: see cuda/precision.cuh. Whoever has no faster way to less
// accuracy, such as the CPU, ignores it.
enum class Precision : int64_t { fp32 = 0, tf32x3 = 1, bf16x3 = 2, tf32 = 3 };

// The operator's stats tensor, in this order.
enum Stat {
  kSimilarPairs,
  kDissimilarPairs,
  kActiveFraction,
  kSimilarPart,
  kDissimilarPart,
  kStats
};

// double for double, float for float and the half-precision types.
template <typename scalar_t>
using accumulator_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// By which rows with the same largest class are put in order, from the odds (1 - p) / p of that
// class: in eighths of octaves, the exponent and three bits of a float, from 2^-20 on. Also among
// confident rows KL depends on how little they leave to the other classes.
PAIRLOSS_HOST_DEVICE uint8_t confidence(float odds) {
  constexpr uint32_t kLeast = (127 - 20) << 3;
  uint32_t bits;
  std::memcpy(&bits, &odds, sizeof(bits));
  const uint32_t eighths = odds > 0.0f ? bits >> 20 : 0;
  const uint32_t above = eighths > kLeast ? eighths - kLeast : 0;
  return static_cast<uint8_t>(above < 255 ? above : 255);
}

// False for infinities and NaN.
template <typename T>
PAIRLOSS_HOST_DEVICE bool is_finite(T x) {
  return x - x == T(0);
}

// A dissimilar pair takes part where its divergence is strictly below the margin. Written with >=
// so that a NaN divergence takes part too, and reaches the loss and the gradient instead of passing
// for a pair far apart.
template <typename T>
PAIRLOSS_HOST_DEVICE bool is_active(T divergence, T margin) {
  return !(divergence >= margin);
}

// Eq. 3, one direction.
template <typename T>
PAIRLOSS_HOST_DEVICE T pair_loss(T divergence, bool similar, T margin) {
  if (similar) return divergence;
  return is_active(divergence, margin) ? margin - divergence : T(0);
}

// One class's term of KL(P||Q), P log(P/Q), from log_ratio = log P - log Q. P = 0 contributes
// nothing whatever Q is, also where Q = 0 makes the ratio infinite or NaN. NaN in P passes.
template <typename T>
PAIRLOSS_HOST_DEVICE T kl_term(T p, T log_ratio) {
  return p == T(0) ? T(0) : p * log_ratio;
}

// A probability below the smallest normal number counts as 0: nothing it multiplies can matter, and
// vectorised exponentials do not all have subnormal results.
template <typename T>
PAIRLOSS_HOST_DEVICE T flush_probability(T p) {
  // Not numeric_limits<T>::min(): nvcc takes it for a call of a host function.
  constexpr T kSmallestNormal = static_cast<T>(std::is_same_v<T, double> ? DBL_MIN : FLT_MIN);
  return p < kSmallestNormal ? T(0) : p;
}

// What l_ij of a similar and of a dissimilar pair is multiplied by, from the numbers of unordered
// pairs of each kind. Balanced, each kind weighs as much as half of all pairs.
struct KindScales {
  double similar, dissimilar;
};

PAIRLOSS_HOST_DEVICE KindScales kind_scales(Reduction reduction, double similar_pairs,
                                            double dissimilar_pairs, double similar_weight,
                                            double dissimilar_weight, bool balance) {
  // An ordered pair without its counterpart is half a pair, the least that there can be.
  constexpr double kLeast = 0.5;
  const double pairs = similar_pairs + dissimilar_pairs;
  const double scale = reduction == Reduction::mean ? 1.0 / (pairs > kLeast ? pairs : kLeast) : 1.0;
  KindScales scales{scale * similar_weight, scale * dissimilar_weight};
  if (balance) {
    scales.similar *= pairs / (2.0 * (similar_pairs > kLeast ? similar_pairs : kLeast));
    scales.dissimilar *= pairs / (2.0 * (dissimilar_pairs > kLeast ? dissimilar_pairs : kLeast));
  }
  return scales;
}

}  // namespace pairloss
