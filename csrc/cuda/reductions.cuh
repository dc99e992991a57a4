// Sums and maxima over a block of threads, in an order that does not depend on how the threads run.
#pragma once

#include <math.h>

#include "cuda/launch.h"
#include "pair_math.h"

namespace pairloss::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Maximum {
  __device__ double operator()(double a, double b) const { return fmax(a, b); }
};

struct Or {
  __device__ unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};

// Over groups of lanes whose numbers differ in the bits kLanes alone; every lane gets its group's
// result.
template <typename Operation, int kLanes, typename T>
__device__ T reduce_over(T value, Operation operation = {}) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    if (kLanes & lanes) value = operation(value, __shfl_xor_sync(kAllLanes, value, lanes));
  return value;
}

// Over groups of kLanes neighbouring lanes.
template <typename Operation, int kLanes = kWarp, typename T>
__device__ T reduce_lanes(T value, Operation operation = {}) {
  return reduce_over<Operation, kLanes - 1>(value, operation);
}

PAIRLOSS_HOST_DEVICE constexpr int highest_bit(int bits) {
  int bit = 1;
  while (bits /= 2) bit *= 2;
  return bit;
}

// With how many of scatter_sums() a lane is left.
PAIRLOSS_HOST_DEVICE constexpr int sums_of_lane(int lanes, int count) {
  for (; lanes != 0 && count > 1; lanes -= highest_bit(lanes)) count /= 2;
  return count;
}

// Sums of kCount values, a power of two, as reduce_over() makes them, but each lane gets a share of
// them alone: with every bit of kLanes, from the highest on, half of what is left, the second half
// where its number has the bit. So eight values and eight lanes take 7 shuffles, not 24. Leaves
// them in values[0], values[1], ..., and returns the index of the first.
template <int kLanes, int kCount, typename T, int kSize>
__device__ __forceinline__ int scatter_sums(T (&values)[kSize]) {
  if constexpr (kLanes == 0) {
    return 0;
  } else if constexpr (kCount == 1) {
    values[0] = reduce_over<Sum, kLanes>(values[0]);
    return 0;
  } else {
    constexpr int kBit = highest_bit(kLanes), kHalf = kCount / 2;
    const bool has_bit = (threadIdx.x & kBit) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const T given = has_bit ? values[i] : values[kHalf + i];
      const T kept = has_bit ? values[kHalf + i] : values[i];
      values[i] = kept + __shfl_xor_sync(kAllLanes, given, kBit);
    }
    return (has_bit ? kHalf : 0) + scatter_sums<kLanes - kBit, kHalf>(values);
  }
}

// x itself, by way of a shuffle, behind which the compiler does not see: else what takes a few
// instructions is computed again wherever it is used, in a loop each time. By all lanes.
template <typename T>
__device__ T keep(T x) {
  return __shfl_sync(kAllLanes, x, static_cast<int>(threadIdx.x % kWarp));
}

// Over all threads of the block, which are whole warps; every thread gets the result.
template <typename Operation, typename T>
__device__ T reduce_block(T value, Operation operation = {}) {
  PAIRLOSS_SHARED(T, of_warp, [kWarp]);
  value = reduce_lanes<Operation>(value);
  __syncthreads();  // an earlier call may still be reading
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = of_warp[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x / kWarp); ++warp)
    value = operation(value, static_cast<T>(of_warp[warp]));
  return value;
}

}  // namespace
}  // namespace pairloss::cuda
