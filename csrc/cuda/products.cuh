// The sums over columns that the gradient is made of: with g_ij = dLoss/dD_ij,
//
//   A_i = sum_j g_ij (L_i - L_j)        B_i = sum_j g_ji (P_i - P_j)
//
// by tiles of 64 rows x 16 or 64 classes. g is expanded from the marks, 32 columns at a time, and
// columns without any weight are skipped. Every sum is over differences of rows: the cheaper
// r_i L_i - (G L)_i cancels where the rows are nearly equal, which is how training starts.
#pragma once

#include "cuda/losses.cuh"

namespace pairloss::cuda {
namespace {

constexpr int kStaged = 32;  // columns of the problem that are staged at a time
constexpr int kStagedQuads = kStaged / kMicro, kTileWords = kTile / kStaged;
constexpr int kNarrowPanel = 16, kWidePanel = 64;  // classes of a block

PAIRLOSS_HOST_DEVICE constexpr int product_threads(int panel) {
  return (kTile / kMicro) * (panel / kMicro);
}

// tile[j][k] = matrix[first + j][k0 + k], 0 outside the matrix.
template <int kPanel, typename Tile, typename acc_t>
__device__ void stage(Tile& tile, const acc_t* matrix, int64_t rows, int64_t classes, int64_t first,
                      int64_t k0) {
  for (int e = threadIdx.x; e < kStaged * kPanel; e += product_threads(kPanel)) {
    const int k = e % kPanel, j = e / kPanel;
    const bool inside = first + j < rows && k0 + k < classes;
    tile[j][k] = inside ? matrix[(first + j) * classes + k0 + k] : acc_t(0);
  }
}

// A and B of the thread's 4 rows x 4 classes. kUnbounded: in a pair of weight 0 the difference may
// be infinite or NaN.
template <bool kBoth, bool kUnbounded, typename Weights, typename Tile, typename acc_t>
__device__ __forceinline__ void add_columns(const Weights& w_ij, const Weights& w_ji,
                                            const Tile& p_j, const Tile& log_p_j, int i0, int k0,
                                            const acc_t (&p)[kMicro][kMicro],
                                            const acc_t (&log_p)[kMicro][kMicro],
                                            acc_t (&a)[kMicro][kMicro],
                                            acc_t (&b)[kMicro][kMicro]) {
  // double is short of registers
  [[maybe_unused]] constexpr int kUnroll = sizeof(acc_t) == sizeof(float) ? 2 : 1;
#pragma unroll kUnroll
  for (int j = 0; j < kStaged; ++j) {
    acc_t p_column[kMicro], log_p_column[kMicro];
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      p_column[c] = p_j[j][k0 + c];
      if (kBoth) log_p_column[c] = log_p_j[j][k0 + c];
    }
#pragma unroll
    for (int r = 0; r < kMicro; ++r) {
      const acc_t weight_ij = kBoth ? static_cast<acc_t>(w_ij[j][i0 + r]) : acc_t(0);
      const acc_t weight_ji = w_ji[j][i0 + r];
#pragma unroll
      for (int c = 0; c < kMicro; ++c) {
        if (kBoth && !(kUnbounded && weight_ij == acc_t(0)))
          a[r][c] += weight_ij * (log_p[r][c] - log_p_column[c]);
        if (!(kUnbounded && weight_ji == acc_t(0))) b[r][c] += weight_ji * (p[r][c] - p_column[c]);
      }
    }
  }
}

// The weights of one row and four columns.
template <typename acc_t>
struct QuadWeights {
  acc_t ij[kMicro] = {}, ji[kMicro] = {};
};

// row is in the chunk.
template <typename acc_t>
__device__ unsigned row_marks(const Problem<acc_t>& problem, const Chunk<acc_t>& chunk, int level,
                              int64_t column_quad, int64_t row) {
  const uint64_t marks =
      chunk.marks[marks_index(chunk.stride, problem.level_count, level, column_quad, row / kMicro)];
  return static_cast<unsigned>(marks >> (row % kMicro * kRowBits)) & ((1u << kRowBits) - 1);
}

// A weight of 0 stays 0 whatever it is multiplied by: the weight and the upstream gradient of a row
// that takes no part may be anything.
template <typename acc_t>
__device__ __forceinline__ QuadWeights<acc_t> expand(const Problem<acc_t>& problem,
                                                     const Chunk<acc_t>& chunk, int64_t column_quad,
                                                     int64_t row, acc_t row_weight,
                                                     acc_t row_upstream) {
  QuadWeights<acc_t> weights;
  for (int level = 0; level < problem.level_count; ++level) {
    const unsigned marks = row_marks(problem, chunk, level, column_quad, row);
    const Scale<acc_t> scale = problem.levels[level].scale;
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      weights.ij[c] += coefficient(marks >> (c * kPairBits), scale);
      weights.ji[c] += coefficient(marks >> (c * kPairBits + kMarkBits), scale);
    }
  }
#pragma unroll
  for (int c = 0; c < kMicro; ++c) {
    const bool on_ij = weights.ij[c] != acc_t(0), on_ji = weights.ji[c] != acc_t(0);
    if (!on_ij && !on_ji) continue;
    const acc_t weight = gradient_weight(problem, row_weight, row_upstream,
                                         chunk.first_column() + column_quad * kMicro + c);
    if (on_ij) weights.ij[c] *= weight;
    if (on_ji) weights.ji[c] *= weight;
  }
  return weights;
}

// Whether tensor_products.cuh leaves a word of columns to this kernel: there, 0 is multiplied by
// whatever the rows hold, which must be finite. Such a tile is always open.
template <typename acc_t>
__device__ bool is_left(const Problem<acc_t>& problem, int64_t row, int64_t column) {
  return problem.rows.tile_unbounded[row / kTile] || problem.columns.tile_unbounded[column / kTile];
}

// The words of columns that a block of the products walks over, in their order: those of the open
// tiles of its rows, if that is known.
struct WordList {
  const int* tiles;  // of columns; null: all
  int64_t count;

  __device__ int64_t word(int64_t number) const {
    return tiles == nullptr
               ? number
               : int64_t{tiles[number / kTileWords]} * kTileWords + number % kTileWords;
  }
};

// row_tile: of the chunk.
template <typename acc_t>
__device__ WordList list_words(const Problem<acc_t>& problem, const Chunk<acc_t>& chunk,
                               int64_t row_tile) {
  if (chunk.open_columns == nullptr)
    return {nullptr, int64_t{chunk.tiles.column_tiles} * kTileWords};
  const int* const columns = open_columns(chunk, row_tile / group_tiles(problem));
  return {columns + 1, int64_t{columns[0]} * kTileWords};
}

// Grid (row tiles of the chunk, product_splits, panels). Writes the chunk's a (kBoth) and b, or
// adds to them; behind tensor_products_kernel, adds what that has left.
//
// The number of blocks on a multiprocessor sets the registers: 128 a thread for the wide panel, 168
// for the narrow one (255 with double). Left to itself, ptxas aims at fewer there, and spills.
template <int kPanel, bool kBoth, typename acc_t>
__global__ void __launch_bounds__(product_threads(kPanel),
                                  kPanel == kNarrowPanel ? 24 / sizeof(acc_t) : 2)
    products_kernel(Problem<acc_t> problem, Chunk<acc_t> chunk) {
  PAIRLOSS_SHARED(acc_t, w_ij, [kStaged][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, w_ji, [kStaged][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, p_j, [kStaged][kPanel]);
  PAIRLOSS_SHARED(acc_t, log_p_j, [kStaged][kPanel]);

  constexpr int kLanes = kPanel / kMicro;
  const Side<acc_t>&rows = problem.rows, &columns = problem.columns;
  const bool only_left = columns.planes != nullptr;
  if (only_left && *problem.extrema.some_unbounded == 0) return;
  const int x = threadIdx.x % kLanes, y = threadIdx.x / kLanes;
  const int64_t local = int64_t{blockIdx.x} * kTile, first = chunk.first + local;
  const int64_t k0 = static_cast<int64_t>(blockIdx.z) * kPanel;
  const WordList list = list_words(problem, chunk, blockIdx.x);
  const Range words = part(list.count, blockIdx.y, chunk.product_splits);
  if ((only_left || chunk.adds) && words.begin == words.end) return;

  acc_t p[kMicro][kMicro], log_p[kMicro][kMicro], a[kMicro][kMicro] = {}, b[kMicro][kMicro] = {};
#pragma unroll
  for (int r = 0; r < kMicro; ++r) {
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      const int64_t row = first + y * kMicro + r, k = k0 + x * kMicro + c;
      const bool inside = row < rows.rows && k < problem.classes;
      p[r][c] = inside ? rows.p[row * problem.classes + k] : acc_t(0);
      log_p[r][c] = inside ? rows.log_p[row * problem.classes + k] : acc_t(0);
    }
  }

  // The row whose weights the thread expands, together with the other kRowShare - 1 of its kind.
  constexpr int kRowShare = product_threads(kPanel) / kTile;
  const int expanded = threadIdx.x % kTile, share = threadIdx.x / kTile;
  const acc_t row_weight = value_or(rows.weights, rows, first + expanded, acc_t(1));
  const acc_t row_upstream = value_or(rows.upstream, rows, first + expanded, acc_t(0));
  const int row_unbounded = is_unbounded(rows, first + expanded);

  for (int64_t number = words.begin; number < words.end; ++number) {
    const int64_t word = list.word(number);
    const int64_t column = chunk.first_column() + word * kStaged, first_quad = word * kStagedQuads;
    if (only_left && !is_left(problem, first, column)) continue;
    unsigned any = 0;
    for (int quad = share; quad < kStagedQuads; quad += kRowShare)
      for (int level = 0; level < problem.level_count; ++level)
        any |= row_marks(problem, chunk, level, first_quad + quad, local + expanded);
    // Also the barrier behind which the staged columns may be replaced.
    if (!__syncthreads_or(any != 0)) continue;

#pragma unroll 1  // in the narrow panel eight; all at once cost registers
    for (int quad = share; quad < kStagedQuads; quad += kRowShare) {
      const QuadWeights<acc_t> weights =
          expand(problem, chunk, first_quad + quad, local + expanded, row_weight, row_upstream);
#pragma unroll
      for (int c = 0; c < kMicro; ++c) {
        if (kBoth) w_ij[quad * kMicro + c][expanded] = weights.ij[c];
        w_ji[quad * kMicro + c][expanded] = weights.ji[c];
      }
    }
    stage<kPanel>(p_j, columns.p, columns.rows, problem.classes, column, k0);
    if (kBoth) stage<kPanel>(log_p_j, columns.log_p, columns.rows, problem.classes, column, k0);
    // Also the barrier in front of what has been staged.
    const int column_unbounded = is_unbounded(columns, column + expanded % kStaged);
    if (__syncthreads_or(row_unbounded | column_unbounded))
      add_columns<kBoth, true>(w_ij, w_ji, p_j, log_p_j, y * kMicro, x * kMicro, p, log_p, a, b);
    else
      add_columns<kBoth, false>(w_ij, w_ji, p_j, log_p_j, y * kMicro, x * kMicro, p, log_p, a, b);
  }

#pragma unroll
  for (int r = 0; r < kMicro; ++r) {
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      const int64_t row = local + y * kMicro + r, k = k0 + x * kMicro + c;
      if (row >= chunk.rows || k >= problem.classes) continue;
      const int64_t element = (blockIdx.y * chunk.stride + row) * problem.classes + k;
      const bool adds = only_left || chunk.adds;
      if (kBoth) chunk.a[element] = adds ? chunk.a[element] + a[r][c] : a[r][c];
      chunk.b[element] = adds ? chunk.b[element] + b[r][c] : b[r][c];
    }
  }
}

}  // namespace
}  // namespace pairloss::cuda
