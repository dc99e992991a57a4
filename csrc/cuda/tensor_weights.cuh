// The weights g of pairs as the first operand of an mma, expanded from the marks in registers.
//
// A warp takes 32 columns at a time, by mma of 16 rows x 16 columns. Which row and column stands at
// which place of it is free, as long as the sums and the second operand agree. They are placed such
// that what a lane (g, t) (see mma.cuh) holds is neighbouring rows, two for every 16 of the warp,
// and four neighbouring columns: part of one word of marks, or all of it.
#pragma once

#include "cuda/marked_words.cuh"
#include "cuda/planes.cuh"

namespace pairloss::cuda {
namespace {

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

// What a warp makes a sum of, for which rows. kRowTiles: of 16 rows.
template <int kRowTiles>
struct WarpShare {
  static constexpr int kLaneRows = 2 * kRowTiles;
  bool first_argument;  // A, from g_ij and L'; else B, from g_ji and P'
  unsigned quads;       // its rows, as MarkedWord has them
  int64_t row;          // the first one, of the chunk
  int g, t;             // of the lane

  // The lane's row r is at place g, or g + 8 for odd r, of tile r / 2.
  __device__ int64_t row_of_lane(int r) const { return row + g * kLaneRows + r; }
};

// The marks of the lane's rows and a quad of columns: row r's for column c, in the direction of the
// share, from bit r kRowBits + c kPairBits on. What stands between and behind them does not count.
template <int kRowTiles>
__device__ __forceinline__ uint64_t load_marks(const Problem<float>& problem,
                                               const Chunk<float>& chunk,
                                               const WarpShare<kRowTiles>& share, int level,
                                               int64_t column_quad) {
  const int64_t row = share.row_of_lane(0);
  const uint64_t word =
      chunk.marks[marks_index(chunk.stride, problem.level_count, level, column_quad, row / kMicro)];
  return word >> (row % kMicro * kRowBits + (share.first_argument ? 0 : kMarkBits));
}

// ---- two kinds of weights -----------------------------------------------------------------------
//
// load() sets out to get what expand() needs of a word in which the share has marks. expand() makes
// the operands of the word, and adds the weights up by rows. scale() is what it leaves out of both.

// One level, and all pairs weigh the same: g is 0 or +-s, and +-2 stands for +-s, which bf16 holds
// exactly.
struct EqualWeights {
  static constexpr int kWeightPlanes = 1, kRowTiles = 2;
  using Share = WarpShare<kRowTiles>;
  struct Marks {
    uint64_t of_step[kSteps] = {};
  };
  static_assert(Share::kLaneRows == kMicro);  // so a word of marks has the lane's rows alone
  int sums[Share::kLaneRows] = {};            // of the lane's part, times 32
  int64_t first_marks;                        // in the first word of columns, of step 0

  __device__ EqualWeights(const Problem<float>&, const Chunk<float>& chunk, const Share& share)
      : first_marks(keep(marks_index(chunk.stride, 1, 0, quad_of_lane(0, share.t),
                                     share.row_of_lane(0) / kMicro))) {}

  __device__ __forceinline__ Marks load(const Chunk<float>& chunk, const Share& share,
                                        int word) const {
    Marks marks;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      // quad_of_lane() is a sum of what the step gives and what the lane gives.
      const int64_t quad = int64_t{word} * kStagedQuads + quad_of_lane(step, 0);
      const uint64_t of_rows = chunk.marks[first_marks + marks_index(chunk.stride, 1, 0, quad, 0)];
      marks.of_step[step] = of_rows >> (share.first_argument ? 0 : kMarkBits);
    }
    return marks;
  }

  __device__ __forceinline__ void expand(const Problem<float>&, const Chunk<float>&, const Share&,
                                         const Marks& marks, int64_t,
                                         uint32_t (&a)[kSteps][kRowTiles][kWeightPlanes][4]) {
    // By mark, the high byte of 0, 2 and -2, of which the low byte is 0. As an integer it is 0, 64
    // and -64, so the same bytes make the row's sum.
    constexpr uint32_t kHighBytes = 0x00c04000;
    static_assert(kSimilarMark == 1 && kActiveMark == 2);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int r = 0; r < Share::kLaneRows; ++r) {
        const auto row = static_cast<unsigned>(marks.of_step[step] >> (r * kRowBits)) & 0x3333;
        const uint32_t bytes = __byte_perm(kHighBytes, 0, row);
        sums[r] = __dp4a(static_cast<int>(bytes), 0x01010101, sums[r]);
        // Columns 0 and 1, columns 2 and 3: a zero and a high byte each.
        a[step][r / 2][0][r % 2] = __byte_perm(bytes, 0, 0x1404);
        a[step][r / 2][0][r % 2 + 2] = __byte_perm(bytes, 0, 0x3424);
      }
    }
  }

  // By all lanes.
  __device__ float row_sum(int r) const {
    return static_cast<float>(reduce_lanes<Sum, 4>(sums[r])) / 32.0f;
  }
  __device__ float scale(const Problem<float>& problem) const {
    return problem.levels[0].scale.similar / 2.0f;
  }
};

// Any weights, in planes like the rows. There is more to compute for each of them, so no two warps
// share rows.
template <int kPlanes>
struct AnyWeights {
  static constexpr int kWeightPlanes = kPlanes, kRowTiles = 1;
  using Share = WarpShare<kRowTiles>;
  struct Marks {};
  float weights[Share::kLaneRows], upstreams[Share::kLaneRows];  // of the rows
  float sums[Share::kLaneRows] = {};                             // of the lane's part

  __device__ AnyWeights(const Problem<float>& problem, const Chunk<float>& chunk,
                        const Share& share) {
    const Side<float>& rows = problem.rows;
    const bool with_upstream = rows.upstream != nullptr || problem.columns.upstream != nullptr;
#pragma unroll
    for (int r = 0; r < Share::kLaneRows; ++r) {
      const int64_t row = chunk.first + share.row_of_lane(r);
      weights[r] = value_or(rows.weights, rows, row, 1.0f);
      upstreams[r] = value_or(rows.upstream, rows, row, with_upstream ? 0.0f : 1.0f);
    }
  }

  // expand() does it: there may be many levels.
  __device__ static Marks load(const Chunk<float>&, const Share&, int) { return {}; }

  __device__ __forceinline__ void expand(const Problem<float>& problem, const Chunk<float>& chunk,
                                         const Share& share, const Marks&, int64_t word,
                                         uint32_t (&a)[kSteps][kRowTiles][kWeightPlanes][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int64_t quad = word * kStagedQuads + quad_of_lane(step, share.t);
      float g[Share::kLaneRows][kMicro] = {};
      for (int level = 0; level < problem.level_count; ++level)
        add_level(problem.levels[level].scale,
                  static_cast<unsigned>(load_marks(problem, chunk, share, level, quad)), g);
      multiply(problem.columns, chunk.first_column() + quad * kMicro, g);
#pragma unroll
      for (int r = 0; r < Share::kLaneRows; ++r) {
#pragma unroll
        for (int c = 0; c < kMicro; c += 2) {
          sums[r] += g[r][c] + g[r][c + 1];
          // As split() does it.
#pragma unroll
          for (int plane = 0; plane < kPlanes; ++plane) {
            const uint32_t pair = pack_bfloat16(g[r][c], g[r][c + 1]);
            a[step][0][plane][c + r] = pair;
            g[r][c] -= from_bfloat16(pair & 0xffff);
            g[r][c + 1] -= from_bfloat16(pair >> 16);
          }
        }
      }
    }
  }

  // By all lanes. NaN where a weight is, whatever becomes of it in the planes.
  __device__ float row_sum(int r) const { return reduce_lanes<Sum, 4>(sums[r]); }
  __device__ float scale(const Problem<float>&) const { return 1.0f; }

 private:
  __device__ static void add_level(const Scale<float>& scale, unsigned marks,
                                   float (&g)[Share::kLaneRows][kMicro]) {
#pragma unroll
    for (int r = 0; r < Share::kLaneRows; ++r) {
#pragma unroll
      for (int c = 0; c < kMicro; ++c)
        g[r][c] += coefficient(marks >> (r * kRowBits + c * kPairBits), scale);
    }
  }

  // By gradient_weight(), but that a weight of 0 stays 0 whatever it is multiplied by, see expand()
  // in products.cuh.
  __device__ void multiply(const Side<float>& columns, int64_t first_column,
                           float (&g)[Share::kLaneRows][kMicro]) const {
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      const int64_t column = first_column + c;
      const float weight = value_or(columns.weights, columns, column, 1.0f);
      const float upstream = value_or(columns.upstream, columns, column, 0.0f);
#pragma unroll
      for (int r = 0; r < Share::kLaneRows; ++r) {
        const float product = g[r][c] * (weights[r] * weight * (upstreams[r] + upstream));
        g[r][c] = g[r][c] != 0.0f ? product : 0.0f;
      }
    }
  }
};

}  // namespace
}  // namespace pairloss::cuda
