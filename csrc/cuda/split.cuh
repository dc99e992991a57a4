// A float as a sum of parts that tensor cores can multiply:
//
//   x = x1 + x2 + ...,    x1 = part(x),  x2 = part(x - x1),  x3 = part(x - x1 - x2)
//
// bf16 has eight bits, tf32 eleven, and rounding to nearest leaves at most half a unit in the last
// place. So three bf16 hold the 24 bits of a float: their sum is exact where none of them
// underflows or overflows, 2^-110 <= |x| < 2^127. Two leave at most 2^-16 x, two tf32 2^-22 x, and
// a single one 2^-11 x. Of the products of x1 + ... + xn and y1 + ... + yn those with i + j <= n +
// 1 are enough: the others are at most 2^-8n x y each, of tf32 2^-11n x y.
//
// (G. Henry, P. T. P. Tang, A. Heinecke, "Leveraging the bfloat16 artificial intelligence datatype
// for higher-precision computations", 2019.)
#pragma once

#include <cstdint>
#include <cstring>

#include "pair_math.h"

namespace pairloss::cuda {
namespace {

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

// The nearest tf32, ties to even. A tf32 is a float of which tensor cores do not look at the last
// 13 bits; here these are 0. x: finite.
PAIRLOSS_HOST_DEVICE uint32_t to_tfloat32(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(x));
  return (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
}

// What a part is.
struct Bfloat16 {
  static constexpr int kBits = 16;
  static PAIRLOSS_HOST_DEVICE uint32_t nearest(float x) { return to_bfloat16(x); }
  static PAIRLOSS_HOST_DEVICE float value(uint32_t bits) { return from_bfloat16(bits); }
};

struct Tfloat32 {
  static constexpr int kBits = 32;
  static PAIRLOSS_HOST_DEVICE uint32_t nearest(float x) { return to_tfloat32(x); }
  static PAIRLOSS_HOST_DEVICE float value(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
  }
};

// planes[0], [1], ... = x1, x2, ....
template <typename Part, int kPlanes>
PAIRLOSS_HOST_DEVICE void split(float x, uint32_t (&planes)[kPlanes]) {
  for (int plane = 0; plane < kPlanes; ++plane) {
    planes[plane] = Part::nearest(x);
    x -= Part::value(planes[plane]);
  }
}

}  // namespace
}  // namespace pairloss::cuda
