// All of a small batch, after prepare_kernel, in one launch: a block has eight rows, walks over all
// columns by tiles, and finishes its rows. The classes of a tile fit into shared memory, so that
// the divergences and the gradient's sums (products.cuh) come from one load; nothing is kept of the
// pairs. The block that is done last adds up the loss.
#pragma once

#include "cuda/plan.cuh"
#include "cuda/prepare.cuh"
#include "cuda/results.cuh"

namespace pairloss::cuda {
namespace {

constexpr int kSmallThreads = 256, kSmallWarps = kSmallThreads / kWarp;
constexpr int kSmallRows = 8;  // of a block: a warp for each when they are finished
static_assert(kSmallRows == kSmallWarps);

// double for tests: half of the elements fit.
template <typename acc_t>
constexpr int kSmallColumns = sizeof(acc_t) == sizeof(float) ? 64 : 32;  // of a tile
template <typename acc_t>
constexpr int kSmallClasses = sizeof(acc_t) == sizeof(float) ? 64 : 32;  // the most that there are

// With more rows the tiled kernels' eight launches more are repaid: by counts of instructions
// (benchmarks/NOTES.md), not yet measured.
constexpr int64_t kSmallBatch = 512;

template <typename acc_t>
bool is_small(int64_t rows, int64_t columns, int64_t classes, int levels) {
  return rows <= kSmallBatch && columns <= kSmallBatch && classes <= kSmallClasses<acc_t> &&
         levels <= kLevelsPerLaunch;
}

// tile[r][k] = matrix[first + r][k]; rows that do not exist are left as they are.
template <int kRows, typename Tile, typename acc_t>
__device__ void stage_rows(Tile& tile, const acc_t* matrix, int64_t rows, int classes,
                           int64_t first) {
  const int count = rows - first < kRows ? static_cast<int>(rows - first) : kRows;
  for (int e = threadIdx.x; e < count * classes; e += kSmallThreads)
    tile[e / classes][e % classes] = matrix[first * classes + e];
}

template <bool kUnbounded, typename Rows, typename Columns, typename acc_t>
__device__ __forceinline__ void divergences_of_pair(int classes, const Rows& p_i,
                                                    const Rows& log_p_i, const Columns& p_j,
                                                    const Columns& log_p_j, int r, int c,
                                                    acc_t& d_ij, acc_t& d_ji) {
  // The same arithmetic for (i, j) and (j, i), see add_classes().
  for (int k = 0; k < classes; ++k) {
    const acc_t p_row = p_i[r][k], p_column = p_j[c][k];
    const acc_t log_ratio = static_cast<acc_t>(log_p_i[r][k]) - static_cast<acc_t>(log_p_j[c][k]);
    d_ij = add_kl_term<kUnbounded>(d_ij, p_row, log_ratio);
    d_ji = add_kl_term<kUnbounded>(d_ji, p_column, -log_ratio);
  }
}

// The pairs of a thread: one column and kCount rows, kGroups apart.
template <typename acc_t>
struct SmallPairs {
  static constexpr int kGroups = kSmallThreads / kSmallColumns<acc_t>;
  static constexpr int kCount = kSmallRows / kGroups;
  acc_t d_ij[kCount] = {}, d_ji[kCount] = {};
  acc_t g_ij[kCount] = {}, g_ji[kCount] = {};  // dLoss/dD, but for the pairs' weights
};

// One level of the thread's pairs (i0 + m kGroups, j).
template <typename acc_t>
__device__ __forceinline__ void add_small_level(const Problem<acc_t>& problem, int level,
                                                int64_t i0, int64_t j, SmallPairs<acc_t>& pairs,
                                                double (&row_loss)[SmallPairs<acc_t>::kCount],
                                                unsigned (&has_pair)[SmallPairs<acc_t>::kCount],
                                                acc_t& similar_sum, acc_t& dissimilar_sum,
                                                unsigned& active) {
  const Side<acc_t>&rows = problem.rows, &columns = problem.columns;
  const Scale<acc_t> scale = problem.levels[level].scale;
  const int64_t column_label = problem.label(columns, j, level);
  const acc_t column_weight = value_or(columns.weights, columns, j, acc_t(1));
#pragma unroll
  for (int m = 0; m < SmallPairs<acc_t>::kCount; ++m) {
    const int64_t i = i0 + m * SmallPairs<acc_t>::kGroups;
    int kind_ij, kind_ji;
    problem.kinds(i, j, problem.label(rows, i, level), column_label, kind_ij, kind_ji);
    const acc_t weight = value_or(rows.weights, rows, i, acc_t(1)) * column_weight;
    acc_t similar = 0, dissimilar = 0;
    const unsigned mark_ij =
        add_pair(kind_ij, pairs.d_ij[m], problem.margin, weight, similar, dissimilar, active);
    const unsigned mark_ji =
        add_pair(kind_ji, pairs.d_ji[m], problem.margin, weight, similar, dissimilar, active);
    pairs.g_ij[m] += coefficient(mark_ij, scale);
    pairs.g_ji[m] += coefficient(mark_ji, scale);
    has_pair[m] |= kind_ij != 0 || kind_ji != 0;
    row_loss[m] += static_cast<double>(scale.similar * similar + scale.dissimilar * dissimilar);
    similar_sum += similar;
    dissimilar_sum += dissimilar;
  }
}

// A and B of one element (row r, class k). The sums of a tile are added apart, as in add_classes().
template <bool kBoth, typename Rows, typename Columns, typename Weights, typename acc_t>
__device__ __forceinline__ void add_small_columns(int count, const Rows& p_i, const Rows& log_p_i,
                                                  const Columns& p_j, const Columns& log_p_j,
                                                  const Weights& w_ij, const Weights& w_ji, int r,
                                                  int k, acc_t& a, acc_t& b) {
  const acc_t p = p_i[r][k], log_p = log_p_i[r][k];
  acc_t tile_a = 0, tile_b = 0;
  for (int c = 0; c < count; ++c) {
    const acc_t weight_ij = w_ij[r][c], weight_ji = w_ji[r][c];
    // In a pair of weight 0 the difference may be infinite or NaN.
    if (kBoth && weight_ij != acc_t(0))
      tile_a += weight_ij * (log_p - static_cast<acc_t>(log_p_j[c][k]));
    if (weight_ji != acc_t(0)) tile_b += weight_ji * (p - static_cast<acc_t>(p_j[c][k]));
  }
  a += tile_a;
  b += tile_b;
}

// By a warp: terms[row][0] + ... + terms[row][classes - 1].
template <typename Terms>
__device__ double sum_of_row(const Terms& terms, int row, int classes) {
  double sum = 0.0;
  for (int k = threadIdx.x % kWarp; k < classes; k += kWarp) sum += terms[row][k];
  return reduce_lanes<Sum>(sum);
}

// By a whole block: is it the last one of the grid to come here? Each block makes what it has
// written visible before it takes a ticket, so the last one sees all of it.
__device__ inline bool is_last_block(unsigned* ticket) {
  __threadfence();
  __syncthreads();
  int last = 0;
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  last = __syncthreads_or(last);
  __threadfence();
  return last != 0;
}

// What the blocks share.
template <typename acc_t>
struct SmallBatch {
  const Counts* counts = nullptr;
  int64_t count_blocks = 0;
  Level<acc_t>* levels = nullptr;   // (blocks, G): every block makes its own
  LevelSums* level_sums = nullptr;  // (blocks, kSmallWarps, G)
  unsigned* ticket = nullptr;       // how many blocks are done
};

template <typename acc_t>
void take_small_batch(Workspace& workspace, int64_t rows, int level_count,
                      SmallBatch<acc_t>& batch) {
  const int64_t entries = ceil_div(rows, kSmallRows) * level_count;
  batch.levels = workspace.take<Level<acc_t>>(entries);
  batch.level_sums = workspace.take<LevelSums>(entries * kSmallWarps);
}

// Grid: ceil(rows / kSmallRows). row_loss, loss, stats, grad: null where they are not wanted.
template <bool kBoth, typename acc_t, typename out_t>
__global__ void __launch_bounds__(kSmallThreads, 1)
    small_batch_kernel(Problem<acc_t> problem, SmallBatch<acc_t> batch, Weighting weighting,
                       LevelWeights level_weights, acc_t* row_loss, acc_t* loss, double* stats,
                       out_t* grad) {
  constexpr int kColumns = kSmallColumns<acc_t>, kClasses = kSmallClasses<acc_t>;
  // A warp has 32 columns, and one row at a time.
  constexpr int kGroups = SmallPairs<acc_t>::kGroups, kPairs = SmallPairs<acc_t>::kCount;
  // Elements (row, class) of the gradient that a thread has.
  constexpr int kOutputs = kSmallRows * kClasses / kSmallThreads;
  // Padded: lanes that differ in the first index meet different banks.
  PAIRLOSS_SHARED(acc_t, p_i, [kSmallRows][kClasses]);
  PAIRLOSS_SHARED(acc_t, log_p_i, [kSmallRows][kClasses]);
  PAIRLOSS_SHARED(acc_t, p_j, [kColumns][kClasses + 1]);
  PAIRLOSS_SHARED(acc_t, log_p_j, [kColumns][kClasses + 1]);
  PAIRLOSS_SHARED(acc_t, w_ij, [kSmallRows][kColumns + 1]);
  PAIRLOSS_SHARED(acc_t, w_ji, [kSmallRows][kColumns + 1]);
  PAIRLOSS_SHARED(double, loss_of_warp, [kSmallWarps][kPairs]);
  PAIRLOSS_SHARED(unsigned, has_pair_in_warp, [kSmallWarps][kPairs]);
  PAIRLOSS_SHARED(double, terms, [kSmallRows][kClasses]);
  PAIRLOSS_SHARED(double, d_i, [kSmallRows]);
  PAIRLOSS_SHARED(double, rest_i, [kSmallRows]);
  PAIRLOSS_SHARED(double, loss_i, [kSmallRows]);
  PAIRLOSS_SHARED(unsigned, has_pair_i, [kSmallRows]);

  const Side<acc_t>&rows = problem.rows, &columns = problem.columns;
  const int classes = static_cast<int>(problem.classes), level_count = problem.level_count;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int c = threadIdx.x % kColumns, group = threadIdx.x / kColumns;
  const int64_t first = int64_t{blockIdx.x} * kSmallRows;
  const int row_count =
      rows.rows - first < kSmallRows ? static_cast<int>(rows.rows - first) : kSmallRows;

  Level<acc_t>* levels = batch.levels + int64_t{blockIdx.x} * level_count;
  make_levels(0, level_count, problem.within, batch.counts, batch.count_blocks, weighting,
              level_weights, levels);
  problem.levels = levels;
  LevelSums* level_sums =
      batch.level_sums + (int64_t{blockIdx.x} * kSmallWarps + warp) * level_count;
  if (stats != nullptr && lane == 0)
    for (int level = 0; level < level_count; ++level) level_sums[level] = {0.0, 0.0, 0};

  stage_rows<kSmallRows>(p_i, rows.p, rows.rows, classes, first);
  stage_rows<kSmallRows>(log_p_i, rows.log_p, rows.rows, classes, first);
  double pair_loss_sum[kPairs] = {};
  unsigned has_pair[kPairs] = {};
  acc_t a[kOutputs] = {}, b[kOutputs] = {};

  for (int64_t column = 0; column < columns.rows; column += kColumns) {
    const int column_count =
        columns.rows - column < kColumns ? static_cast<int>(columns.rows - column) : kColumns;
    // Also the barrier behind which the tile before has been read, and the levels are written.
    const int unbounded = __syncthreads_or(is_unbounded(rows, first + threadIdx.x % kSmallRows) |
                                           is_unbounded(columns, column + c));
    stage_rows<kColumns>(p_j, columns.p, columns.rows, classes, column);
    stage_rows<kColumns>(log_p_j, columns.log_p, columns.rows, classes, column);
    __syncthreads();  // staged

    SmallPairs<acc_t> pairs;
#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const int r = group + m * kGroups;
      if (r >= row_count || c >= column_count) continue;
      acc_t &d_ij = pairs.d_ij[m], &d_ji = pairs.d_ji[m];
      if (unbounded)
        divergences_of_pair<true>(classes, p_i, log_p_i, p_j, log_p_j, r, c, d_ij, d_ji);
      else
        divergences_of_pair<false>(classes, p_i, log_p_i, p_j, log_p_j, r, c, d_ij, d_ji);
    }
    for (int level = 0; level < level_count; ++level) {
      acc_t similar_sum = 0, dissimilar_sum = 0;
      unsigned active = 0;
      add_small_level(problem, level, first + group, column + c, pairs, pair_loss_sum, has_pair,
                      similar_sum, dissimilar_sum, active);
      if (stats == nullptr) continue;
      similar_sum = reduce_lanes<Sum>(similar_sum);
      dissimilar_sum = reduce_lanes<Sum>(dissimilar_sum);
      active = reduce_lanes<Sum>(active);
      if (lane != 0) continue;  // which alone touches the warp's sums
      level_sums[level].similar += static_cast<double>(similar_sum);
      level_sums[level].dissimilar += static_cast<double>(dissimilar_sum);
      level_sums[level].active += active;
    }
    if (grad == nullptr) continue;

#pragma unroll
    for (int m = 0; m < kPairs; ++m) {
      const int r = group + m * kGroups;
      const acc_t g_ij = pairs.g_ij[m], g_ji = pairs.g_ji[m];
      const bool on = g_ij != acc_t(0) || g_ji != acc_t(0);
      const acc_t weight =
          on ? gradient_weight(problem, value_or(rows.weights, rows, first + r, acc_t(1)),
                               value_or(rows.upstream, rows, first + r, acc_t(0)), column + c)
             : acc_t(0);
      // A weight of 0 stays 0 whatever it is multiplied by.
      w_ij[r][c] = g_ij != acc_t(0) ? g_ij * weight : acc_t(0);
      w_ji[r][c] = g_ji != acc_t(0) ? g_ji * weight : acc_t(0);
    }
    __syncthreads();  // the weights are there

#pragma unroll
    for (int m = 0; m < kOutputs; ++m) {
      const int output = threadIdx.x + m * kSmallThreads, r = output / classes;
      if (r >= row_count) continue;
      add_small_columns<kBoth>(column_count, p_i, log_p_i, p_j, log_p_j, w_ij, w_ji, r,
                               output % classes, a[m], b[m]);
    }
  }

  // The rows: sums over the warps that had a row, and d_i.
#pragma unroll
  for (int m = 0; m < kPairs; ++m) {
    const double sum = reduce_lanes<Sum>(pair_loss_sum[m]);
    const unsigned any = reduce_lanes<Or>(has_pair[m]);
    if (lane != 0) continue;
    loss_of_warp[warp][m] = sum;
    has_pair_in_warp[warp][m] = any;
  }
  if (kBoth && grad != nullptr) {
#pragma unroll
    for (int m = 0; m < kOutputs; ++m) {
      const int output = threadIdx.x + m * kSmallThreads, r = output / classes;
      const int k = output % classes;
      if (r < row_count)
        terms[r][k] = kl_term(static_cast<double>(p_i[r][k]), static_cast<double>(a[m]));
    }
  }
  __syncthreads();  // the parts are there
  if (warp < row_count) {
    const double d = kBoth && grad != nullptr ? sum_of_row(terms, warp, classes) : 0.0;
    if (lane == 0) {
      // The row `warp` was that of kColumns / 32 warps, as their pair m.
      constexpr int kWarpsOfRow = kColumns / kWarp;
      const int m = warp / kGroups, first_warp = warp % kGroups * kWarpsOfRow;
      double sum = 0.0;
      unsigned any = 0;
      for (int w = 0; w < kWarpsOfRow; ++w) {
        sum += loss_of_warp[first_warp + w][m];
        any |= has_pair_in_warp[first_warp + w][m];
      }
      d_i[warp] = d;
      loss_i[warp] = sum;
      has_pair_i[warp] = any;
      if (row_loss != nullptr) row_loss[first + warp] = static_cast<acc_t>(sum);
    }
  }
  __syncthreads();  // d_i is there
  if (grad != nullptr) {
    acc_t elements[kOutputs] = {};
#pragma unroll
    for (int m = 0; m < kOutputs; ++m) {
      const int output = threadIdx.x + m * kSmallThreads, r = output / classes;
      if (r >= row_count) continue;
      const int k = output % classes;
      elements[m] = gradient_element<kBoth>(
          has_pair_i[r] != 0, static_cast<double>(loss_i[r]), static_cast<double>(d_i[r]),
          static_cast<acc_t>(p_i[r][k]), a[m], static_cast<double>(b[m]));
      terms[r][k] = static_cast<double>(elements[m]);
    }
    __syncthreads();  // the elements are there
    const double rest = warp < row_count ? sum_of_row(terms, warp, classes) : 0.0;
    if (lane == 0) rest_i[warp] = rest;
    __syncthreads();  // the rests are there
#pragma unroll
    for (int m = 0; m < kOutputs; ++m) {
      const int output = threadIdx.x + m * kSmallThreads, r = output / classes;
      if (r >= row_count) continue;
      const int k = output % classes;
      grad[(first + r) * classes + k] = static_cast<out_t>(
          without_rest(elements[m], static_cast<double>(rest_i[r]), static_cast<acc_t>(p_i[r][k])));
    }
  }
  if (stats == nullptr) return;
  // The last block adds all sums up in their order: which block that is does not matter.
  if (!is_last_block(batch.ticket)) return;
  write_results(level_count, problem.within, levels, batch.level_sums,
                int64_t{gridDim.x} * kSmallWarps, loss, stats);
}

}  // namespace
}  // namespace pairloss::cuda
