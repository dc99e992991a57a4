// The words of columns that a block of tensor_products_kernel works on: those in which one of its
// rows has a mark.
//
// If every warp looked for the next word by itself, that would take more instructions than the
// products of a few classes. So the warps look at 32 words together, a batch: each warp at some of
// them, for all 128 rows. What they find stands in shared memory, and a register of every warp says
// which of the batch are left.
#pragma once

#include "cuda/products.cuh"
#include "cuda/reductions.cuh"

namespace pairloss::cuda {
namespace {

constexpr int kProductRows = 128;                     // of a block
constexpr int kBatchWords = kWarp;                    // one for each lane
static_assert(kProductRows == 2 * kTile);             // see group_tiles()
static_assert(kProductRows == kMicro * kBatchWords);  // and four rows for each lane

// In one direction.
struct alignas(8) MarkedWord {
  int word;        // of the chunk's columns
  unsigned quads;  // bit q: one of the block's rows 4 q, ..., 4 q + 3 has a mark
};

// The marks of D_ij in a word of 4 x 4 pairs; those of D_ji are the others.
constexpr uint64_t kFirstMarks = 0x3333333333333333;
static_assert(kPairBits == 4 && kMarkBits == 2);

// Found: a shared array of MarkedWord [2][kBatchWords], first those of D_ji, then those of D_ij,
// which count with kBoth alone.
template <bool kBoth, typename Found>
class MarkedWords {
 public:
  // In a span of the list; row_tile: the block's first, of the chunk.
  __device__ MarkedWords(const WordList& list, Range span, int64_t row_tile, Found& found)
      : list_(list), begin_(span.begin), end_(span.end), row_tile_(row_tile), found_(found) {}

  // The next word in the order of the list, with the marks of one direction; {-1, 0} behind the
  // last. By the whole block.
  __device__ __forceinline__ MarkedWord next(const Problem<float>& problem,
                                             const Chunk<float>& chunk, int direction) {
    while (left_ == 0) {
      if (begin_ >= end_) return {-1, 0};
      look(problem, chunk);
      begin_ += kBatchWords;
    }
    const int first = __ffs(static_cast<int>(left_)) - 1;
    left_ &= left_ - 1;
    return found_[direction][first];
  }

 private:
  // Whether a word of columns is to be looked at for a row tile of the block: not where there is no
  // tile, nor where products_kernel does the work, nor in a tile that is not open, whose marks
  // nothing has written.
  __device__ static bool counts(const Problem<float>& problem, const Chunk<float>& chunk,
                                int64_t row_tile, int64_t word) {
    if (row_tile >= chunk.tiles.row_tiles) return false;
    return !is_left(problem, chunk.first + row_tile * kTile,
                    chunk.first_column() + word * kStaged) &&
           is_open(chunk, static_cast<int>(row_tile), static_cast<int>(word / kTileWords));
  }

  // The next batch.
  __device__ __forceinline__ void look(const Problem<float>& problem, const Chunk<float>& chunk) {
    const int lane = threadIdx.x % kWarp;
    const bool exists = begin_ + lane < end_;
    const int word_of_lane = exists ? static_cast<int>(list_.word(begin_ + lane)) : 0;
    unsigned counted[2];  // words, by the row tile
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
      counted[tile] = __ballot_sync(
          kAllLanes, exists && counts(problem, chunk, row_tile_ + tile, word_of_lane));
    // From here on, a lane has four rows.
    const unsigned own = lane < kTileQuads ? counted[0] : counted[1];
    const int64_t row_quad = row_tile_ * kTileQuads + lane;
    __syncthreads();  // the batch before has been read
    for (int number = threadIdx.x / kWarp; number < kBatchWords; number += blockDim.x / kWarp) {
      const int word = __shfl_sync(kAllLanes, word_of_lane, number);
      uint64_t marks = 0;
#pragma unroll 1  // two at once cost registers
      for (int level = 0; level < problem.level_count && (own >> number & 1) != 0; ++level) {
#pragma unroll
        for (int quad = 0; quad < kStagedQuads; ++quad)
          marks |= chunk.marks[marks_index(chunk.stride, problem.level_count, level,
                                           int64_t{word} * kStagedQuads + quad, row_quad)];
      }
      const unsigned ji = __ballot_sync(kAllLanes, (marks & ~kFirstMarks) != 0);
      const unsigned ij = __ballot_sync(kAllLanes, (marks & kFirstMarks) != 0);
      if (lane != 0) continue;
      found_[0][number] = MarkedWord{word, ji};
      if (kBoth) found_[1][number] = MarkedWord{word, ij};
    }
    __syncthreads();
    const MarkedWord ji = found_[0][lane], ij = found_[kBoth][lane];
    left_ = __ballot_sync(kAllLanes, (ji.quads | ij.quads) != 0);
  }

  WordList list_;
  int64_t begin_, end_;  // what is not looked at yet, of the list
  int64_t row_tile_;
  Found& found_;
  unsigned left_ = 0;  // of the batch
};

}  // namespace
}  // namespace pairloss::cuda
