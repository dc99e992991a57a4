// Binary search, without a branch that lanes of a warp could take differently.
#pragma once

#include "cuda/launch.h"

namespace pairloss::cuda {
namespace {

// The first of the sorted values that is not below `value`: how many are.
template <typename T, typename Index>
__device__ Index lower_bound(const T* sorted, Index size, T value) {
  Index begin = 0;
  while (size > 0) {
    const Index half = size / 2;
    const bool below = sorted[begin + half] < value;
    begin = below ? begin + half + 1 : begin;
    size = below ? size - half - 1 : half;
  }
  return begin;
}

}  // namespace
}  // namespace pairloss::cuda
