// The order in which the kernels see the rows of a large batch: like rows are neighbours, so that
// whole tiles of pairs lie on one side of the margin (certificates.cuh). Rows of one label stand
// together, within it those with the same largest class, and within these the more confident ones
// first. Rows with infinities or NaN are behind them, so that few tiles have any, and rows that
// take no part are last.
//
// "Position" is the place of a row in this order. Everything behind these three kernels works on
// positions; only finish_kernel goes back to the rows.
//
// A row's position is the number of rows with a smaller key. Within runs of 1024 rows these are
// counted one by one, and then looked up in every run, which is sorted by then: N^2 / 100 steps and
// two launches, where a radix sort of 64 bits would be two dozen.
#pragma once

#include <math.h>

#include "cuda/pairs.cuh"
#include "cuda/reductions.cuh"
#include "cuda/search.cuh"

namespace pairloss::cuda {
namespace {

// One side, from the caller's order to that of the positions.
template <typename acc_t>
struct Ordering {
  int64_t rows = 0;
  const int64_t* given_labels = nullptr;  // (rows, G)
  const acc_t *given_weights = nullptr, *given_upstream = nullptr;
  uint64_t *keys = nullptr, *sorted_keys = nullptr;  // (rows,), by runs of kRun
  // By position.
  int* row = nullptr;
  int64_t* labels = nullptr;                      // (rows, G)
  acc_t *weights = nullptr, *upstream = nullptr;  // null like those given
};

// ---- keys ---------------------------------------------------------------------------------------
//
// From the highest bit on: whether the row is like others at all, hashes of the labels, the largest
// class, the confidence, and the row, which makes all keys different.

constexpr int kKeyRowBits = 24, kConfidenceBits = 8, kLargestBits = 12, kHashBits = 9;
constexpr int64_t kMostOrderedRows = int64_t{1} << kKeyRowBits;
enum class KeyGroup : uint64_t { like_others, unbounded, no_part };

// Labels are any 64 bits. (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
// 2014.)
PAIRLOSS_HOST_DEVICE uint32_t hash_label(uint64_t label) {
  label += 0x9e3779b97f4a7c15;
  label = (label ^ label >> 30) * 0xbf58476d1ce4e5b9;
  label = (label ^ label >> 27) * 0x94d049bb133111eb;
  return static_cast<uint32_t>((label ^ label >> 31) >> 32);
}

struct Earliest {
  __device__ int operator()(int a, int b) const { return a < b ? a : b; }
};

// By a whole block.
template <typename scalar_t, typename acc_t>
__device__ void make_key(const Ordering<acc_t>& side, int64_t row, int64_t classes, int level_count,
                         int64_t ignore_index, const scalar_t* logits) {
  constexpr int kMostLargest = (1 << kLargestBits) - 1;
  const scalar_t* const z = logits + row * classes;
  double largest = -INFINITY;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x)
    largest = fmax(largest, static_cast<double>(z[k]));
  largest = reduce_block<Maximum>(largest);

  float sum = 0.0f;
  int first = kMostLargest;
  bool bounded = true;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
    const auto below = static_cast<float>(largest - static_cast<double>(z[k]));
    sum += expf(-below);
    if (below == 0.0f && k < first) first = static_cast<int>(k);
    bounded &= below < kBounded;  // not so for NaN
  }
  sum = reduce_block<Sum>(sum);
  first = reduce_block<Earliest>(first);
  const bool unbounded = __syncthreads_or(!bounded);
  if (threadIdx.x > 0) return;

  bool part = false;
  uint32_t of_all = 0, of_first = 0;
  for (int level = 0; level < level_count; ++level) {
    const int64_t label = side.given_labels[row * level_count + level];
    part |= label != ignore_index;
    const auto bits = static_cast<uint64_t>(label);
    of_all = level == 0 ? hash_label(bits) : hash_label(bits + of_all);
    if (level == 0) of_first = of_all;
  }
  const KeyGroup group = !part       ? KeyGroup::no_part
                         : unbounded ? KeyGroup::unbounded
                                     : KeyGroup::like_others;
  // With one level, the two parts are the highest bits of one hash.
  constexpr uint32_t kHashMask = (1u << kHashBits) - 1;
  uint64_t key = static_cast<uint64_t>(group);
  key = key << kHashBits | of_first >> (32 - kHashBits);
  key = key << kHashBits | (of_all >> (32 - 2 * kHashBits) & kHashMask);
  key = key << kLargestBits | static_cast<uint64_t>(first);
  key = key << kConfidenceBits | confidence(sum - 1.0f);
  static_assert(2 + 2 * kHashBits + kLargestBits + kConfidenceBits + kKeyRowBits == 64);
  side.keys[row] = key << kKeyRowBits | static_cast<uint64_t>(row);
}

// A block per row of the batch, then of the reference set.
template <typename scalar_t, typename acc_t>
__global__ void keys_kernel(Ordering<acc_t> batch, Ordering<acc_t> reference, int64_t classes,
                            int level_count, int64_t ignore_index, const scalar_t* logits,
                            const scalar_t* ref_logits) {
  const int64_t block = blockIdx.x;
  if (block < batch.rows)
    make_key(batch, block, classes, level_count, ignore_index, logits);
  else
    make_key(reference, block - batch.rows, classes, level_count, ignore_index, ref_logits);
}

// ---- positions ----------------------------------------------------------------------------------

constexpr int kRun = 1024;  // keys
// Of a block: threads share each key.
constexpr int kOrderThreads = 256, kOrderKeys = 64, kKeyShares = kOrderThreads / kOrderKeys;

// The keys of a block: `first` and those behind, of the batch or of the reference set.
template <typename acc_t>
struct OrderBlock {
  Ordering<acc_t> side;
  int64_t first;

  __device__ OrderBlock(const Ordering<acc_t>& batch, const Ordering<acc_t>& reference) {
    const int64_t batch_blocks = ceil_div(batch.rows, kOrderKeys);
    const bool of_batch = blockIdx.x < batch_blocks;
    side = of_batch ? batch : reference;
    first = (blockIdx.x - (of_batch ? 0 : batch_blocks)) * kOrderKeys;
  }

  // Of the thread.
  __device__ int64_t key() const { return first + threadIdx.x % kOrderKeys; }
  __device__ static int share() { return threadIdx.x / kOrderKeys; }

  __device__ int run_size(int64_t run) const {
    const int64_t left = side.rows - run * kRun;
    return static_cast<int>(left < kRun ? left : kRun);
  }
};

// Adds up what the threads of a key have counted. By a whole block, once.
__device__ inline int sum_of_shares(int count) {
  PAIRLOSS_SHARED(int, of_shares, [kKeyShares][kOrderKeys]);
  of_shares[threadIdx.x / kOrderKeys][threadIdx.x % kOrderKeys] = count;
  __syncthreads();
  int sum = 0;
  for (int share = 0; share < kKeyShares; ++share)
    sum += of_shares[share][threadIdx.x % kOrderKeys];
  return sum;
}

// Grid, here and below: a block per kOrderKeys rows of the batch, then of the reference set.
template <typename acc_t>
__global__ void __launch_bounds__(kOrderThreads)
    sort_runs_kernel(Ordering<acc_t> batch, Ordering<acc_t> reference) {
  PAIRLOSS_SHARED(uint64_t, keys, [kRun]);
  const OrderBlock<acc_t> block(batch, reference);
  const int64_t run = block.first / kRun;
  const int size = block.run_size(run);
  for (int i = threadIdx.x; i < size; i += kOrderThreads) keys[i] = block.side.keys[run * kRun + i];
  __syncthreads();
  const bool exists = block.key() < block.side.rows;
  const uint64_t key = exists ? block.side.keys[block.key()] : 0;
  int smaller = 0;
  for (int i = block.share(); i < size; i += kKeyShares) smaller += keys[i] < key;
  smaller = sum_of_shares(smaller);
  if (exists && block.share() == 0) block.side.sorted_keys[run * kRun + smaller] = key;
}

// Writes what there is by position.
template <typename acc_t>
__global__ void __launch_bounds__(kOrderThreads)
    positions_kernel(Ordering<acc_t> batch, Ordering<acc_t> reference, int level_count) {
  const OrderBlock<acc_t> block(batch, reference);
  const Ordering<acc_t>& side = block.side;
  const bool exists = block.key() < side.rows;
  // Neighbours in a run look at the same keys of the others.
  const uint64_t key = exists ? side.sorted_keys[block.key()] : 0;
  const int64_t runs = ceil_div(side.rows, kRun);
  int position = 0;
  for (int64_t run = block.share(); run < runs; run += kKeyShares)
    position += lower_bound(side.sorted_keys + run * kRun, block.run_size(run), key);
  position = sum_of_shares(position);
  if (!exists || block.share() > 0) return;
  const auto row = static_cast<int64_t>(key & (kMostOrderedRows - 1));
  side.row[position] = static_cast<int>(row);
  for (int level = 0; level < level_count; ++level)
    side.labels[int64_t{position} * level_count + level] =
        side.given_labels[row * level_count + level];
  if (side.weights != nullptr) side.weights[position] = side.given_weights[row];
  if (side.upstream != nullptr) side.upstream[position] = side.given_upstream[row];
}

}  // namespace
}  // namespace pairloss::cuda
