// A float as the sum of three bf16, so that tensor cores can multiply at float32 accuracy:
//
//   x = x1 + x2 + x3,    x1 = bf16(x),  x2 = bf16(x - x1),  x3 = bf16(x - x1 - x2)
//
// bf16 has eight bits, and rounding to nearest leaves at most half a unit in its last place: the
// three hold the 24 bits of a float, so the sum is exact where none of them underflows or
// overflows, 2^-110 <= |x| < 2^127. Of the nine products of x1 + x2 + x3 and y1 + y2 + y3 those
// with i + j <= 4 are enough: the others are below 2^-25 x y.
//
// (G. Henry, P. T. P. Tang, A. Heinecke, "Leveraging the bfloat16 artificial intelligence datatype
// for higher-precision computations", 2019.)
#pragma once

#include <cstdint>
#include <cstring>

#include "pair_math.h"

namespace pairloss::cuda {
namespace {

constexpr int kPlanes = 3;

PAIRLOSS_HOST_DEVICE float from_bfloat16(uint32_t bits) {
  const uint32_t wide = bits << 16;
  float x;
  memcpy(&x, &wide, sizeof(x));
  return x;
}

// The bits of the nearest bf16, ties to even. x: finite.
PAIRLOSS_HOST_DEVICE uint32_t to_bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(x));
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

// planes[0], [1], [2] = x1, x2, x3.
PAIRLOSS_HOST_DEVICE void split(float x, uint32_t (&planes)[kPlanes]) {
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = to_bfloat16(x);
    x -= from_bfloat16(planes[plane]);
  }
}

}  // namespace
}  // namespace pairloss::cuda
