// The weights g of pairs as the first operand of an mma, expanded from the marks in registers.
//
// A warp has 32 rows and takes 32 columns at a time, by an mma of 16 rows x 16 columns. Which row
// and column stands at which place of it is free, as long as the sums and the second operand agree.
// They are placed such that what a lane (g, t) (see mma.cuh) holds is rows 4g, ..., 4g + 3 and four
// neighbouring columns: the marks of 4 x 4 pairs, one word.
#pragma once

#include "cuda/planes.cuh"
#include "cuda/products.cuh"

namespace pairloss::cuda {
namespace {

constexpr int kWarpRows = 32, kRowTiles = kWarpRows / 16;
constexpr int kSteps = kStaged / 16;  // mma along the columns

// Columns 4 q, ..., 4 q + 3 of the 32 are those of lane t in a step: at its places 2t, 2t + 1, 2t +
// 8, 2t + 9. Quads in this order let ldmatrix take eight columns of a half without a bank conflict,
// see plane_octet().
PAIRLOSS_HOST_DEVICE int quad_of_lane(int step, int t) {
  return (t & 1) | step << 1 | (t & 2) << 1;
}

PAIRLOSS_HOST_DEVICE int column_at(int step, int place) {
  return quad_of_lane(step, place % 8 / 2) * kMicro + place / 8 * 2 + place % 2;
}

// Which sum a warp makes, and of what.
struct WarpShare {
  bool first_argument;  // A, from g_ij and L'; else B, from g_ji and P'
  bool exists;          // its rows are those of a tile that is there, and bounded
  int64_t row;          // the first one, of the chunk
  int first_tile;       // of 8 classes
  int g, t;             // of the lane

  __device__ int64_t row_quad() const { return row / kMicro + g; }
  __device__ int mark_shift() const { return first_argument ? 0 : kMarkBits; }
};

// The words of marks that a lane needs for 32 columns.
struct Words {
  uint64_t of_step[kSteps] = {};

  __device__ bool any() const {
    uint64_t all = 0;
    for (int step = 0; step < kSteps; ++step) all |= of_step[step];
    return all != 0;
  }

  // In the direction of the share.
  __device__ bool any(const WarpShare& share) const {
    constexpr uint64_t kFirstOfEach = 0x3333333333333333;
    uint64_t all = 0;
    for (int step = 0; step < kSteps; ++step) all |= of_step[step] >> share.mark_shift();
    return (all & kFirstOfEach) != 0;
  }
};
static_assert(kPairBits == 4 && kMarkBits == 2);

__device__ __forceinline__ uint64_t marks_of(const Problem<float>& problem,
                                             const Chunk<float>& chunk, const WarpShare& share,
                                             int level, int64_t column_quad) {
  return chunk
      .marks[marks_index(chunk, problem.columns.rows, level, column_quad, share.row_quad())];
}

// Of several levels, a mark in any. None beyond `end`, nor where products_kernel does the work.
__device__ __forceinline__ Words load_words(const Problem<float>& problem,
                                            const Chunk<float>& chunk, const WarpShare& share,
                                            int64_t word, int64_t end) {
  Words words;
  if (!share.exists || word >= end || problem.columns.tile_unbounded[word * kStaged / kTile])
    return words;
  for (int level = 0; level < problem.level_count; ++level) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      words.of_step[step] |=
          marks_of(problem, chunk, share, level, word * kStagedQuads + quad_of_lane(step, share.t));
  }
  return words;
}

// The two kinds of weights have kPlanes planes, and expand for kTilesAtOnce tiles of 16 rows before
// the mma begin. They also add up the weights of each row, in units of scale().

// One level, and all pairs weigh the same: g is 0 or +-s, and +-2 stands for +-s, which bf16 holds
// exactly.
class EqualWeights {
 public:
  static constexpr int kWeightPlanes = 1, kTilesAtOnce = kRowTiles;

  __device__ EqualWeights(const Problem<float>&, const WarpShare& share, int64_t) : share_(share) {}

  __device__ __forceinline__ void expand(const Problem<float>&, const Chunk<float>&,
                                         const Words& words, int64_t, int step, int row_tile,
                                         uint32_t (&a)[kWeightPlanes][4]) {
    // By mark, the high byte of 0, 2 and -2, of which the low byte is 0. As an integer it is 0, 64
    // and -64, so the same bytes make the row's sum.
    constexpr uint32_t kHighBytes = 0x00c04000;
    static_assert(kSimilarMark == 1 && kActiveMark == 2);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int r = 2 * row_tile + m;
      const uint64_t marks = words.of_step[step] >> (r * kRowBits + share_.mark_shift());
      const uint32_t bytes = __byte_perm(kHighBytes, 0, static_cast<unsigned>(marks) & 0x3333);
      sums_[r] = __dp4a(static_cast<int>(bytes), 0x01010101, sums_[r]);
      a[0][m] = __byte_perm(bytes, 0, 0x1404);
      a[0][2 + m] = __byte_perm(bytes, 0, 0x3424);
    }
  }

  // By all lanes.
  __device__ float row_sum(int r) const {
    return static_cast<float>(reduce_lanes<Sum, 4>(sums_[r])) / 32.0f;
  }
  __device__ float scale(const Problem<float>& problem) const {
    return problem.levels[0].scale.similar / 2.0f;
  }

 private:
  const WarpShare& share_;
  int sums_[kMicro] = {};
};

// Any weights, split.
class AnyWeights {
 public:
  static constexpr int kWeightPlanes = kPlanes, kTilesAtOnce = 1;

  // first: the chunk's first row.
  __device__ AnyWeights(const Problem<float>& problem, const WarpShare& share, int64_t first)
      : share_(share) {
#pragma unroll
    for (int r = 0; r < kMicro; ++r) {
      const int64_t row = first + share.row + share.g * kMicro + r;
      weight_[r] = value_or(problem.rows.weights, problem.rows, row, 1.0f);
      upstream_[r] = value_or(problem.rows.upstream, problem.rows, row, 0.0f);
    }
  }

  __device__ __forceinline__ void expand(const Problem<float>& problem, const Chunk<float>& chunk,
                                         const Words& words, int64_t word, int step, int row_tile,
                                         uint32_t (&a)[kWeightPlanes][4]) {
    const int64_t quad = word * kStagedQuads + quad_of_lane(step, share_.t);
    float g[2][kMicro] = {};
    for (int level = 0; words.of_step[step] != 0 && level < problem.level_count; ++level) {
      const Scale<float> scale = problem.levels[level].scale;
      const uint64_t marks = marks_of(problem, chunk, share_, level, quad) >>
                             (2 * row_tile * kRowBits + share_.mark_shift());
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int c = 0; c < kMicro; ++c)
          g[m][c] +=
              coefficient(static_cast<unsigned>(marks >> (m * kRowBits + c * kPairBits)), scale);
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int r = 2 * row_tile + m;
#pragma unroll
      for (int c = 0; c < kMicro; ++c) {
        // A weight of 0 stays 0 whatever it is multiplied by, see expand() in products.cuh.
        if (g[m][c] != 0.0f)
          g[m][c] *= gradient_weight(problem, weight_[r], upstream_[r], quad * kMicro + c);
        sums_[r] += g[m][c];
      }
#pragma unroll
      for (int c = 0; c < kMicro; c += 2) {
        uint32_t low[kPlanes], high[kPlanes];
        split(g[m][c], low);
        split(g[m][c + 1], high);
#pragma unroll
        for (int plane = 0; plane < kPlanes; ++plane)
          a[plane][c + m] = low[plane] | high[plane] << 16;
      }
    }
  }

  // By all lanes. NaN where a weight is, whatever becomes of it in the planes.
  __device__ float row_sum(int r) const { return reduce_lanes<Sum, 4>(sums_[r]); }
  __device__ float scale(const Problem<float>&) const { return 1.0f; }

 private:
  const WarpShare& share_;
  float weight_[kMicro], upstream_[kMicro];  // of the rows
  float sums_[kMicro] = {};
};

}  // namespace
}  // namespace pairloss::cuda
