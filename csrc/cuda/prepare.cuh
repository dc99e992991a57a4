// Before the pairs: P and L of every row, and the numbers of pairs that "mean" and balance divide
// by.
#pragma once

#include <math.h>

#include "cuda/planes.cuh"
#include "cuda/tiles.cuh"

namespace pairloss::cuda {
namespace {

// ---- softmax ------------------------------------------------------------------------------------

// By a whole block. All in double: it is O(N K) work beside O(N^2 K), and it takes the rounding of
// log-sum-exp, which would be common to a whole row, out of the differences of rows. L is stored as
// log P + log K: the constant cancels in every difference, and where P is nearly uniform what is
// stored is small and keeps its digits.
//
// Rows that take no part are no exception: what they hold reaches nothing, because their pairs have
// no mark, and a weight of 0 (see `unbounded`).
template <typename scalar_t, typename acc_t>
__device__ void softmax_row(const Side<acc_t>& side, int64_t row, int64_t classes,
                            const scalar_t* logits) {
  const scalar_t* z = logits + given_row(side, row) * classes;
  acc_t* p = side.p + row * classes;
  acc_t* log_p = side.log_p + row * classes;

  // fmax drops NaN, but the sum does not. +inf gives inf - inf = NaN, and so do -inf throughout.
  double largest = -INFINITY;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x)
    largest = fmax(largest, static_cast<double>(z[k]));
  largest = reduce_block<Maximum>(largest);

  double sum = 0.0;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x)
    sum += exp(static_cast<double>(z[k]) - largest);
  sum = reduce_block<Sum>(sum);

  const double log_mean = log(sum / static_cast<double>(classes)), reciprocal = 1.0 / sum;
  bool bounded = true;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
    const double shifted = static_cast<double>(z[k]) - largest;
    const acc_t stored = static_cast<acc_t>(shifted - log_mean);
    p[k] = flush_probability(static_cast<acc_t>(exp(shifted) * reciprocal));
    log_p[k] = stored;
    bounded &= fabs(stored) < static_cast<acc_t>(kBounded);  // not so for NaN
  }
  const int unbounded = __syncthreads_or(!bounded);
  if (threadIdx.x == 0) side.unbounded[row] = unbounded;
}

// ---- numbers of pairs ---------------------------------------------------------------------------

// Ordered pairs (i, j) of one level.
struct Counts {
  int64_t similar, dissimilar;
};

// By a whole block, of which each thread gets the result. A thread compares four rows with four
// columns at a time, whose labels stay in registers: five instructions a pair.
template <typename acc_t>
__device__ Counts count_by_labels(const Problem<acc_t>& problem, Range rows, Range columns,
                                  int level, bool with_itself) {
  constexpr int kRows = 4, kColumns = 4;
  // Beyond the last row or column, labels are as those that are ignored; and these count like
  // others at first, all with one label.
  const int row_count = static_cast<int>(rows.end - rows.begin);
  const int column_count = static_cast<int>(columns.end - columns.begin);
  const auto label = [&](const Side<acc_t>& side, const Range& range, int number, int count) {
    const int64_t* const first = side.labels + range.begin * problem.level_count + level;
    return number < count ? first[int64_t{number} * problem.level_count] : problem.ignore_index;
  };
  int64_t equal = 0;
  int valid_rows = 0, valid_columns = 0, ignored_columns = 0;
  for (int begin = 0; begin < column_count; begin += blockDim.x * kColumns) {
    int64_t of_columns[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int number = begin + c * blockDim.x + threadIdx.x;
      of_columns[c] = label(problem.columns, columns, number, column_count);
      const bool valid = of_columns[c] != problem.ignore_index;
      valid_columns += valid;
      ignored_columns += !valid;
    }
    unsigned hits = 0;
    for (int i = 0; i < row_count; i += kRows) {
      int64_t of_rows[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) of_rows[r] = label(problem.rows, rows, i + r, row_count);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) hits += of_rows[r] == of_columns[c];
      }
    }
    equal += hits;
  }
  for (int i = threadIdx.x; i < row_count; i += blockDim.x)
    valid_rows += label(problem.rows, rows, i, row_count) != problem.ignore_index;
  equal = reduce_block<Sum>(equal);
  valid_rows = reduce_block<Sum>(valid_rows);
  valid_columns = reduce_block<Sum>(valid_columns);
  ignored_columns = reduce_block<Sum>(ignored_columns);
  const int64_t ignored_rows = ceil_div(row_count, kRows) * kRows - valid_rows;
  const int64_t similar = equal - ignored_rows * ignored_columns;
  const int64_t valid = int64_t{valid_rows} * valid_columns;
  return {with_itself ? similar - valid_rows : similar, valid - similar};
}

// The same of a similarity matrix; mirrored: both (i, j) and (j, i).
template <typename acc_t>
__device__ Counts count_by_matrix(const Problem<acc_t>& problem, Range rows, Range columns,
                                  bool mirrored) {
  int64_t similar = 0, dissimilar = 0;
  for (int64_t j = columns.begin + threadIdx.x; j < columns.end; j += blockDim.x) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      int kind_ij, kind_ji;
      problem.kinds(i, j, 0, 0, kind_ij, kind_ji);
      similar += (kind_ij > 0) + (mirrored && kind_ji > 0);
      dissimilar += (kind_ij < 0) + (mirrored && kind_ji < 0);
    }
  }
  similar = reduce_block<Sum>(similar);
  dissimilar = reduce_block<Sum>(dissimilar);
  return {similar, dissimilar};
}

// By a whole block, which writes the counts (G,) of its tile, and of that one's mirror image.
template <typename acc_t>
__device__ void count_pairs(const Problem<acc_t>& problem, const PairTiles& tiles, int index,
                            Counts* counts) {
  const PairTile tile = tiles.at(index);
  const Range rows = part(problem.rows.rows, tile.row, tiles.row_tiles);
  const Range columns = part(problem.columns.rows, tile.column, tiles.column_tiles);
  const bool mirrored = tiles.has_mirror(tile);
  for (int level = 0; level < problem.level_count; ++level) {
    Counts found;
    if (problem.similarity != nullptr) {
      found = count_by_matrix(problem, rows, columns, mirrored);
    } else {
      found = count_by_labels(problem, rows, columns, level, tiles.once && !mirrored);
      if (mirrored) found = {2 * found.similar, 2 * found.dissimilar};
    }
    if (threadIdx.x == 0) counts[int64_t{index} * problem.level_count + level] = found;
  }
}

// Also clears the ticket of small_batch_kernel, and what extrema_kernel joins. Grid: a
// block per tile of pairs to be counted, one per row of the batch, and one per row of the reference
// set. The counting blocks come first because they take longest.
template <typename scalar_t, typename acc_t>
__global__ void prepare_kernel(Problem<acc_t> problem, const scalar_t* logits,
                               const scalar_t* ref_logits, PairTiles count_tiles, Counts* counts,
                               unsigned* ticket) {
  int64_t block = blockIdx.x;
  if (block == 0 && threadIdx.x == 0) *ticket = 0;
  if (block == 0) clear_extrema(problem.extrema, problem.classes);
  if (block < count_tiles.count())
    return count_pairs(problem, count_tiles, static_cast<int>(block), counts);
  block -= count_tiles.count();
  if (block < problem.rows.rows) return softmax_row(problem.rows, block, problem.classes, logits);
  block -= problem.rows.rows;
  softmax_row(problem.columns, block, problem.classes, ref_logits);
}

// ---- scales -------------------------------------------------------------------------------------

// What the caller wants of the pairs' weights.
struct Weighting {
  double similar_weight, dissimilar_weight;
  bool balance;
  Reduction reduction;
};

// Kernel arguments have a fixed size.
constexpr int kLevelsPerLaunch = 32;
struct LevelWeights {
  double of[kLevelsPerLaunch];
};

// By a whole block: writes levels[first], ... from all blocks' counts.
template <typename acc_t>
__device__ void make_levels(int first, int level_count, bool within, const Counts* counts,
                            int64_t count_blocks, const Weighting& weighting,
                            const LevelWeights& level_weights, Level<acc_t>* levels) {
  for (int level = first; level < level_count && level < first + kLevelsPerLaunch; ++level) {
    int64_t similar = 0, dissimilar = 0;
#pragma unroll 8  // one block waits for memory alone
    for (int64_t block = threadIdx.x; block < count_blocks; block += blockDim.x) {
      similar += counts[block * level_count + level].similar;
      dissimilar += counts[block * level_count + level].dissimilar;
    }
    similar = reduce_block<Sum>(similar);
    dissimilar = reduce_block<Sum>(dissimilar);
    if (threadIdx.x != 0) continue;
    const double unordered = within ? 0.5 : 1.0;  // each pair of the batch has been counted twice
    const double similar_pairs = unordered * static_cast<double>(similar);
    const double dissimilar_pairs = unordered * static_cast<double>(dissimilar);
    // Those of a level without pairs do not matter: they multiply nothing.
    const KindScales scales =
        kind_scales(weighting.reduction, similar_pairs, dissimilar_pairs, weighting.similar_weight,
                    weighting.dissimilar_weight, weighting.balance);
    const double level_weight = level_weights.of[level - first];
    levels[level] = {similar_pairs,
                     dissimilar_pairs,
                     {static_cast<acc_t>(level_weight * scales.similar),
                      static_cast<acc_t>(level_weight * scales.dissimilar)}};
  }
}

// One block.
template <typename acc_t>
__global__ void levels_kernel(int first, int level_count, bool within, const Counts* counts,
                              int64_t count_blocks, Weighting weighting, LevelWeights level_weights,
                              Level<acc_t>* levels) {
  make_levels(first, level_count, within, counts, count_blocks, weighting, level_weights, levels);
}

}  // namespace
}  // namespace pairloss::cuda
