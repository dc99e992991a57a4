// Binary search, without a branch that lanes of a warp could take differently; and a wider one.
#pragma once

#include "cuda/reductions.cuh"

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

// The same by a warp, which looks at 32 values at a time: each time memory answers, 33 parts become
// one. By all lanes, with the same arguments.
template <typename T>
__device__ int64_t lower_bound_of_warp(const T* sorted, int64_t size, T value) {
  const int lane = threadIdx.x % kWarp;
  int64_t begin = 0;
  while (size > 0) {
    const int64_t step = size / (kWarp + 1) + 1, probe = (lane + 1) * step - 1;
    const bool below = probe < size && sorted[begin + probe] < value;
    const int64_t skipped = __popc(__ballot_sync(kAllLanes, below)) * step;
    begin += skipped;
    size = size - skipped < step ? size - skipped : step - 1;
  }
  return begin;
}

}  // namespace
}  // namespace pairloss::cuda
