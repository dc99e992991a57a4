// Tiles of pairs that are certain without looking at the pairs. For row i and a tile J of 64
// columns, with the extrema of each class of L over J,
//
//   sum_k P_ik (L_ik - max_J L_k)  <=  D_ij  <=  sum_k P_ik (L_ik - min_J L_k)    for all j in J,
//
// since P >= 0: two sums in place of 64. A tile is beyond the margin if the lower bounds of all its
// rows are, in both directions. If it has no similar pair besides, it adds nothing to the loss nor
// to the gradient. In batches of a trained network about half of the tiles are such; random logits
// have none (docs/cuda.md).
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

// Those of the rows that take part in a level, by their hashes. Rows stand in the order of the
// hashes, so ranges tell most tiles apart, of the first level at least; the mask, a bit for each
// 64th of the hashes, tells apart those that have few labels.
//
// False means that they may have a label in common.
PAIRLOSS_HOST_DEVICE bool are_disjoint(const LabelSet& a, const LabelSet& b) {
  return a.greatest < b.least || b.greatest < a.least || (a.mask & b.mask) == 0;
}

// By a whole block.
__device__ inline LabelSet join_labels(LabelSet of_thread) {
  return {reduce_block<Least>(of_thread.least), reduce_block<Greatest>(of_thread.greatest),
          reduce_block<AnyBit>(of_thread.mask)};
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
  bool valid = false, unbounded = false;
  if (threadIdx.x < kTile) {
    const int64_t row = first + threadIdx.x;
    valid = takes_part(problem, side, row);
    unbounded = valid && is_unbounded(side, row);
    counts[threadIdx.x] = valid;
  }
  const bool some_valid = __syncthreads_or(valid);
  const bool some_unbounded = __syncthreads_or(unbounded);
  if (threadIdx.x == 0)
    summaries.kind[tile] = some_unbounded ? TileKind::unbounded
                           : some_valid   ? TileKind::bounded
                                          : TileKind::empty;

  for (int level = 0; level < problem.level_count; ++level) {
    LabelSet labels;
    const int64_t label = threadIdx.x < kTile ? problem.label(side, first + threadIdx.x, level)
                                              : problem.ignore_index;
    if (label != problem.ignore_index) {
      const uint32_t hash = hash_label(static_cast<uint64_t>(label));
      labels = {hash, hash, uint64_t{1} << (hash % 64)};
    }
    labels = join_labels(labels);
    if (threadIdx.x == 0) summaries.labels[tile * problem.level_count + level] = labels;
  }

  PAIRLOSS_SHARED(acc_t, greatest_of_warps, [kSummaryWarps][kWarp]);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t k0 = 0; k0 < problem.classes; k0 += kWarp) {
    acc_t greatest = -INFINITY;
    for (int r = warp; r < kTile && k0 + lane < problem.classes; r += kSummaryWarps) {
      if (!counts[r]) continue;
      greatest = Greatest()(greatest, side.log_p[(first + r) * problem.classes + k0 + lane]);
    }
    __syncthreads();  // the extrema before have been read
    greatest_of_warps[warp][lane] = greatest;
    __syncthreads();
    if (warp > 0 || k0 + lane >= problem.classes) continue;
    for (int other = 1; other < kSummaryWarps; ++other)
      greatest = Greatest()(greatest, static_cast<acc_t>(greatest_of_warps[other][lane]));
    summaries.greatest[tile * problem.classes + k0 + lane] = greatest;
  }
}

// ---- bounds -------------------------------------------------------------------------------------

// Of the rows of one tile and the columns of another, in one direction.
enum Verdict : uint8_t { kBeyond = 1 };

// How far a bound may be off. Its terms are rounded 16 + K / 16 times and a few (add_classes() adds
// likewise), by half an epsilon of their absolute values. Those of the other sign than the rest add
// up to 24 at most: P_ik (max_J L_k - L_ik) is below max_J P_k / e, which are 64 rows' P at most.
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
  PAIRLOSS_SHARED(acc_t, greatest, [kStep][kBoundTiles + 1]);
  PAIRLOSS_SHARED(unsigned, of_warps, [FmaLayout::kThreads / kWarp][kBoundTiles]);

  const int64_t classes = problem.classes;
  const int groups = static_cast<int>(ceil_div(columns.count, kBoundTiles));
  const int row_tile = blockIdx.x / groups, first_column = blockIdx.x % groups * kBoundTiles;
  const int64_t first = (int64_t{rows.first} + row_tile) * kTile;
  const int i0 = threadIdx.x / kBoundTiles * kMicro, c = threadIdx.x % kBoundTiles;

  acc_t lower[kMicro] = {};
  for (int64_t k0 = 0; k0 < classes; k0 += kStep) {
    if (k0 > 0) __syncthreads();  // the step before has been read
    stage_transposed(p, rows.side.p, rows.side.rows, classes, first, k0);
    stage_transposed(log_p, rows.side.log_p, rows.side.rows, classes, first, k0);
    for (int e = threadIdx.x; e < kStep * kBoundTiles; e += FmaLayout::kThreads) {
      const int k = e % kStep, tile = e / kStep;
      const bool inside = first_column + tile < columns.count && k0 + k < classes;
      const int64_t of_tile = int64_t{columns.first} + first_column + tile;
      greatest[k][tile] =
          inside ? columns.side.summaries.greatest[of_tile * classes + k0 + k] : acc_t(0);
    }
    __syncthreads();
    acc_t of_step[kMicro] = {};
    for (int k = 0; k < kStep; ++k) {
      const acc_t bound = greatest[k][c];
#pragma unroll
      for (int m = 0; m < kMicro; ++m) {
        const acc_t log_ratio = static_cast<acc_t>(log_p[k][i0 + m]) - bound;
        of_step[m] = fma(static_cast<acc_t>(p[k][i0 + m]), log_ratio, of_step[m]);
      }
    }
#pragma unroll
    for (int m = 0; m < kMicro; ++m) lower[m] += of_step[m];
  }

  unsigned failed = 0;
#pragma unroll
  for (int m = 0; m < kMicro; ++m) {
    const bool beyond = lower[m] - doubt(lower[m], classes) >= problem.margin;
    if (!beyond && takes_part(problem, rows.side, first + i0 + m)) failed |= kBeyond;
  }
  failed = reduce_over<Or, kBoundTiles>(failed);  // over the warp's two rows of threads
  if (threadIdx.x % kWarp < kBoundTiles) of_warps[threadIdx.x / kWarp][c] = failed;
  __syncthreads();
  if (threadIdx.x >= kBoundTiles || first_column + c >= columns.count) return;
  for (int warp = 0; warp < FmaLayout::kThreads / kWarp; ++warp) failed |= of_warps[warp][c];
  verdicts[int64_t{row_tile} * columns.count + first_column + c] =
      static_cast<uint8_t>(kBeyond & ~failed);
}

}  // namespace
}  // namespace pairloss::cuda
