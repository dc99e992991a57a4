// Tiles of pairs that are certain without looking at the pairs. For row i and a tile J of 64
// columns, with the extrema of each class of L over J,
//
//   sum_k P_ik (L_ik - max_J L_k)  <=  D_ij  <=  sum_k P_ik (L_ik - min_J L_k)    for all j in J,
//
// since P >= 0: two sums in place of 64. A tile is beyond the margin if the lower bounds of all its
// rows are, in both directions, and inside if the upper bounds are. If it is beyond and has no
// similar pair, it adds nothing to the loss nor to the gradient; if it is inside and has none, or
// has similar pairs alone, its sums have a closed form (closed_forms.cuh). In batches of a trained
// network half of the tiles and more are certain; random logits have none (docs/cuda.md).
#pragma once

#include <math.h>

#include "cuda/divergences.cuh"
#include "cuda/order.cuh"
#include "cuda/planes.cuh"
#include "cuda/reductions.cuh"

namespace pairloss::cuda {
namespace {

// ---- what is known of a tile of rows ------------------------------------------------------------

struct Least {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

struct Greatest {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

struct AnyBit {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a | b; }
};

// Rows stand in the order of the hashes of their labels, so ranges tell most tiles apart, of the
// first level at least; the mask, a bit for each 64th of the hashes, tells apart those that have
// few labels. False means that they may have a label in common.
PAIRLOSS_HOST_DEVICE bool are_disjoint(const LabelSet& a, const LabelSet& b) {
  return a.greatest < b.least || b.greatest < a.least || (a.mask & b.mask) == 0;
}

// What all pairs of two tiles are in a level, if that is known.
enum class Relation { none, similar, dissimilar, unknown };

PAIRLOSS_HOST_DEVICE Relation relation_of(const LabelSet& a, const LabelSet& b) {
  if (a.mask == 0 || b.mask == 0) return Relation::none;
  if (a.one && b.one && a.label == b.label) return Relation::similar;
  return are_disjoint(a, b) ? Relation::dissimilar : Relation::unknown;
}

template <typename acc_t>
__device__ LabelSet& label_set(const Problem<acc_t>& problem, const Side<acc_t>& side, int64_t tile,
                               int level) {
  return side.summaries.labels[tile * problem.level_count + level];
}

// By a whole block, each thread with one row. valid: the row takes part in some level.
template <typename acc_t>
__device__ LabelSet join_labels(const Problem<acc_t>& problem, int64_t label, bool valid) {
  const bool in_level = label != problem.ignore_index;
  const uint32_t hash = hash_label(static_cast<uint64_t>(label));
  LabelSet labels;
  labels.least = reduce_block<Least>(in_level ? hash : labels.least);
  labels.greatest = reduce_block<Greatest>(in_level ? hash : labels.greatest);
  labels.mask = reduce_block<AnyBit>(in_level ? uint64_t{1} << (hash % 64) : uint64_t{0});
  labels.full = !__syncthreads_or(valid && !in_level);
  labels.label = reduce_block<Least>(in_level ? label : INT64_MAX);
  labels.one = labels.full && labels.label == reduce_block<Greatest>(in_level ? label : INT64_MIN);
  return labels;
}

constexpr int kSummaryThreads = 256, kSummaryWarps = kSummaryThreads / kWarp;

// Grid: the tiles of the batch, then those of the reference set.
template <typename acc_t>
__global__ void __launch_bounds__(kSummaryThreads, 4) summaries_kernel(Problem<acc_t> problem) {
  const int64_t row_tiles = ceil_div(problem.rows.rows, kTile);
  const bool of_rows = blockIdx.x < row_tiles;
  const Side<acc_t>& side = of_rows ? problem.rows : problem.columns;
  const TileSummaries<acc_t>& summaries = side.summaries;
  const int64_t tile = of_rows ? blockIdx.x : blockIdx.x - row_tiles, first = tile * kTile;

  PAIRLOSS_SHARED(int, counts, [kTile]);
  PAIRLOSS_SHARED(double, weights, [kTile]);
  PAIRLOSS_SHARED(double, upstreams, [kTile]);
  const int64_t row = threadIdx.x < kTile ? first + threadIdx.x : side.rows;
  const bool valid = takes_part(problem, side, row);
  const double weight =
      valid ? static_cast<double>(value_or(side.weights, side, row, acc_t(1))) : 0.0;
  const double upstream =
      valid ? weight * static_cast<double>(value_or(side.upstream, side, row, acc_t(0))) : 0.0;
  if (threadIdx.x < kTile) {
    counts[threadIdx.x] = valid;
    weights[threadIdx.x] = weight;
    upstreams[threadIdx.x] = upstream;
  }
  const int count = reduce_block<Sum>(static_cast<int>(valid));
  const double sum_of_weights = reduce_block<Sum>(weight);
  const double sum_of_upstreams = reduce_block<Sum>(upstream);
  const bool some_unbounded = __syncthreads_or(valid && is_unbounded(side, row));
  for (int level = 0; level < problem.level_count; ++level) {
    const LabelSet labels = join_labels(problem, problem.label(side, row, level), valid);
    if (threadIdx.x == 0) label_set(problem, side, tile, level) = labels;
  }

  PAIRLOSS_SHARED(acc_t, least_of_warps, [kSummaryWarps][kWarp]);
  PAIRLOSS_SHARED(acc_t, greatest_of_warps, [kSummaryWarps][kWarp]);
  PAIRLOSS_SHARED(double, sums_of_warps, [4 * kSummaryWarps][kWarp]);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  double entropy = 0.0;
  for (int64_t k0 = 0; k0 < problem.classes; k0 += kWarp) {
    acc_t least = INFINITY, greatest = -INFINITY;
    TileSums sums;
    for (int r = warp; r < kTile && k0 + lane < problem.classes; r += kSummaryWarps) {
      if (!counts[r]) continue;
      const acc_t log_p = side.log_p[(first + r) * problem.classes + k0 + lane];
      least = Least()(least, log_p);
      greatest = Greatest()(greatest, log_p);
      const double wide = static_cast<double>(log_p);
      const double p = probability(wide, problem.classes);
      sums.add(weights[r], upstreams[r], wide, p);
      entropy += weights[r] * p * wide;
    }
    __syncthreads();  // those of the classes before have been read
    least_of_warps[warp][lane] = least;
    greatest_of_warps[warp][lane] = greatest;
#pragma unroll
    for (int i = 0; i < 4; ++i) sums_of_warps[i * kSummaryWarps + warp][lane] = sums.of[i];
    __syncthreads();
    if (warp > 0 || k0 + lane >= problem.classes) continue;
    for (int other = 1; other < kSummaryWarps; ++other) {
      least = Least()(least, static_cast<acc_t>(least_of_warps[other][lane]));
      greatest = Greatest()(greatest, static_cast<acc_t>(greatest_of_warps[other][lane]));
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.of[i] += sums_of_warps[i * kSummaryWarps + other][lane];
    }
    const int64_t element = tile * problem.classes + k0 + lane;
    summaries.least[element] = least;
    summaries.greatest[element] = greatest;
    summaries.sums[element] = sums;
  }
  entropy = reduce_block<Sum>(entropy);
  if (threadIdx.x > 0) return;
  summaries.row_sums[tile] = {count, sum_of_weights, sum_of_upstreams, entropy};
  summaries.kind[tile] = some_unbounded ? TileKind::unbounded
                         : count > 0    ? TileKind::bounded
                                        : TileKind::empty;
}

// ---- bounds -------------------------------------------------------------------------------------

// Of the rows of one tile and the columns of another, in one direction.
enum Verdict : uint8_t { kBeyond = 1, kInside = 2 };

// How far a bound may be off. Its terms are rounded 16 + K / 16 times and a few (add_classes() adds
// likewise), by half an epsilon of their absolute values. Those of the other sign than the rest add
// up to 24 at most: P_ik (max_J L_k - L_ik) is below max_J P_k / e, which are 64 rows' P at most,
// and P_ik (min_J L_k - L_ik) below min_J P_k / e, one row's.
// What is left of 64 is for the rounding of P and L themselves. The epsilon that is not halved
// leaves room for the rounding of the divergences, so that a pair's mark never depends on whether
// its tile was certain.
template <typename acc_t>
PAIRLOSS_HOST_DEVICE acc_t doubt(acc_t bound, int64_t classes) {
  constexpr acc_t kEpsilon =
      std::is_same_v<acc_t, double> ? acc_t(DBL_EPSILON) : acc_t(FLT_EPSILON);
  return kEpsilon * static_cast<acc_t>(24 + classes / 16) * (fabs(bound) + acc_t(64));
}

// Some tiles of a side.
template <typename acc_t>
struct TileSpan {
  Side<acc_t> side;
  int first, count;
};

constexpr int kBoundTiles = 16;  // of columns, of a block

// Grid: row tiles x groups of kBoundTiles column tiles. Writes verdicts (row tiles, column tiles);
// those of tiles that are not TileKind::bounded mean nothing.
template <typename acc_t>
__global__ void __launch_bounds__(FmaLayout::kThreads)
    bounds_kernel(Problem<acc_t> problem, TileSpan<acc_t> rows, TileSpan<acc_t> columns,
                  uint8_t* verdicts) {
  PAIRLOSS_SHARED(acc_t, p, [kStep][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, log_p, [kStep][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, least, [kStep][kBoundTiles + 1]);
  PAIRLOSS_SHARED(acc_t, greatest, [kStep][kBoundTiles + 1]);
  PAIRLOSS_SHARED(unsigned, of_warps, [FmaLayout::kThreads / kWarp][kBoundTiles]);

  const int64_t classes = problem.classes;
  const int groups = static_cast<int>(ceil_div(columns.count, kBoundTiles));
  const int row_tile = blockIdx.x / groups, first_column = blockIdx.x % groups * kBoundTiles;
  const int64_t first = (int64_t{rows.first} + row_tile) * kTile;
  const int i0 = threadIdx.x / kBoundTiles * kMicro, c = threadIdx.x % kBoundTiles;

  acc_t lower[kMicro] = {}, upper[kMicro] = {};
  for (int64_t k0 = 0; k0 < classes; k0 += kStep) {
    if (k0 > 0) __syncthreads();  // the step before has been read
    stage_transposed(p, rows.side.p, rows.side.rows, classes, first, k0);
    stage_transposed(log_p, rows.side.log_p, rows.side.rows, classes, first, k0);
    for (int e = threadIdx.x; e < kStep * kBoundTiles; e += FmaLayout::kThreads) {
      const int k = e % kStep, tile = e / kStep;
      const bool inside = first_column + tile < columns.count && k0 + k < classes;
      const int64_t element = (int64_t{columns.first} + first_column + tile) * classes + k0 + k;
      least[k][tile] = inside ? columns.side.summaries.least[element] : acc_t(0);
      greatest[k][tile] = inside ? columns.side.summaries.greatest[element] : acc_t(0);
    }
    __syncthreads();
    acc_t lower_step[kMicro] = {}, upper_step[kMicro] = {};
    for (int k = 0; k < kStep; ++k) {
      const acc_t least_log_p = least[k][c], greatest_log_p = greatest[k][c];
#pragma unroll
      for (int m = 0; m < kMicro; ++m) {
        const acc_t p_row = p[k][i0 + m], log_p_row = log_p[k][i0 + m];
        lower_step[m] = fma(p_row, log_p_row - greatest_log_p, lower_step[m]);
        upper_step[m] = fma(p_row, log_p_row - least_log_p, upper_step[m]);
      }
    }
#pragma unroll
    for (int m = 0; m < kMicro; ++m) {
      lower[m] += lower_step[m];
      upper[m] += upper_step[m];
    }
  }

  unsigned failed = 0;
#pragma unroll
  for (int m = 0; m < kMicro; ++m) {
    if (!takes_part(problem, rows.side, first + i0 + m)) continue;
    if (!(lower[m] - doubt(lower[m], classes) >= problem.margin)) failed |= kBeyond;
    if (!(upper[m] + doubt(upper[m], classes) < problem.margin)) failed |= kInside;
  }
  failed = reduce_over<Or, kBoundTiles>(failed);  // over the warp's two rows of threads
  if (threadIdx.x % kWarp < kBoundTiles) of_warps[threadIdx.x / kWarp][c] = failed;
  __syncthreads();
  if (threadIdx.x >= kBoundTiles || first_column + c >= columns.count) return;
  for (int warp = 0; warp < FmaLayout::kThreads / kWarp; ++warp) failed |= of_warps[warp][c];
  verdicts[int64_t{row_tile} * columns.count + first_column + c] =
      static_cast<uint8_t>((kBeyond | kInside) & ~failed);
}

}  // namespace
}  // namespace pairloss::cuda
