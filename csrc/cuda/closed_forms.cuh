// Tiles of pairs that all weigh the same, g, but for the rows' weights: all similar, or all
// dissimilar and inside the margin, or the one in some levels and the other in others. Divergences
// are linear in one of their rows, so sums over such a tile J are those of its summary:
//
//   sum_j w_j g (L_i - L_j) = g (W L_i - sum_j w_j L_j)      P alike, W = sum_j w_j
//   sum_j w_j D_ij          = W h_i - P_i . sum_j w_j L_j    h_i = P_i . L_i
//   sum_j w_j D_ji          = sum_j w_j h_j - sum_j w_j P_j . L_i
//
// and a row tile needs the sums of these over all its closed tiles: N^2 / 64^2 times K of work. All
// in double, with P made anew from L, since these are the differences of sums that products.cuh
// avoids in float. In the backward of reduction none, where pairs have weights w_i w_j (u_i + u_j),
// there are as many sums again with w_j u_j in place of w_j.
#pragma once

#include <math.h>

#include "cuda/certificates.cuh"
#include "cuda/tiles.cuh"

namespace pairloss::cuda {
namespace {

// What the rows of a tile need.
struct ClosedSums {
  int tiles;         // of columns, that are closed
  double weights;    // sum over these of g W,
  double upstreams;  // of g sum_j w_j u_j,
  double entropies;  // of g sum_j w_j h_j,
  double margins;    // and of W times what active pairs add to the loss of both directions
};

// By row tiles of the problem; null without.
struct ClosedForms {
  ClosedSums* rows = nullptr;
  TileSums* sums = nullptr;         // (row tiles, K), of the tiles' times g
  LevelSums* level_sums = nullptr;  // (row tiles, closed_parts(), G), or null
};

constexpr int kClosedThreads = 256, kClosedWarps = kClosedThreads / kWarp;

// A block has a tile of rows and a warp of classes.
PAIRLOSS_HOST_DEVICE int closed_parts(int64_t classes) {
  return static_cast<int>(ceil_div(classes, kWarp));
}

// The g of a closed tile, and what of it is of active pairs, without the sign.
struct ClosedWeight {
  double all = 0.0, active = 0.0;
};

template <typename acc_t>
__device__ ClosedWeight closed_weight(const Problem<acc_t>& problem, TileState state,
                                      int64_t row_tile, int64_t column_tile) {
  ClosedWeight weight;
  for (int level = 0; level < problem.level_count; ++level) {
    const Relation relation = relation_of(label_set(problem, problem.rows, row_tile, level),
                                          label_set(problem, problem.columns, column_tile, level));
    const Scale<acc_t> scale = problem.levels[level].scale;
    if (relation == Relation::similar) weight.all += scale.similar;
    if (relation == Relation::dissimilar && state == TileState::inside)
      weight.active += scale.dissimilar;
  }
  weight.all -= weight.active;
  return weight;
}

// The states of a row tile's tiles.
struct StateRow {
  const TileState* states;
  int columns;
  int64_t row_tile, first_column_tile;  // of the problem

  template <typename acc_t>
  __device__ StateRow(const Chunk<acc_t>& chunk, int row)
      : states(chunk.states + int64_t{row} * chunk.tiles.column_tiles),
        columns(chunk.tiles.column_tiles),
        row_tile(chunk.first / kTile + row),
        first_column_tile(chunk.first_column_tile) {}

  // Each of the closed tiles that are the warp's.
  template <typename Visit>
  __device__ void for_closed_tiles(Visit visit) const {
    for (int column = threadIdx.x / kWarp; column < columns; column += kClosedWarps)
      if (states[column] == TileState::inside || states[column] == TileState::beyond)
        visit(states[column], first_column_tile + column);
  }
};

// Grid (row tiles of the chunk and of the rows behind, closed_parts()). Writes their closed forms,
// or adds to those of earlier chunks.
template <typename acc_t>
__global__ void __launch_bounds__(kClosedThreads, 2)
    closed_sums_kernel(Problem<acc_t> problem, Chunk<acc_t> chunk, Chunk<acc_t> behind,
                       ClosedForms closed) {
  constexpr int kSums = 4;
  PAIRLOSS_SHARED(double, of_warps, [(kSums + 1) * kClosedWarps][kWarp]);
  const TileSummaries<acc_t>&rows = problem.rows.summaries, &columns = problem.columns.summaries;
  const int row_tile = blockIdx.x, row_tiles = chunk.tiles.row_tiles;
  const StateRow tiles =
      row_tile < row_tiles ? StateRow(chunk, row_tile) : StateRow(behind, row_tile - row_tiles);
  const bool adds = chunk.tiles.once && chunk.first > 0;
  const int64_t classes = problem.classes, own = tiles.row_tile;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t k = int64_t{blockIdx.y} * kWarp + lane;
  const bool exists = k < classes;

  TileSums of_class;
  ClosedSums sums{};
  tiles.for_closed_tiles([&](TileState state, int64_t column) {
    const ClosedWeight weight = closed_weight(problem, state, own, column);
    if (exists) {
      const TileSums& of_column = columns.sums[column * classes + k];
#pragma unroll
      for (int i = 0; i < kSums; ++i) of_class.of[i] += weight.all * of_column.of[i];
    }
    const RowSums& of_tile = columns.row_sums[column];
    ++sums.tiles;
    sums.weights += weight.all * of_tile.weight;
    sums.upstreams += weight.all * of_tile.upstream;
    sums.entropies += weight.all * of_tile.entropy;
    sums.margins += 2.0 * static_cast<double>(problem.margin) * weight.active * of_tile.weight;
  });
#pragma unroll
  for (int i = 0; i < kSums; ++i) of_warps[i * kClosedWarps + warp][lane] = of_class.of[i];
  if (lane == 0) {
    const int row = kSums * kClosedWarps + warp;
    of_warps[row][0] = sums.tiles;
    of_warps[row][1] = sums.weights;
    of_warps[row][2] = sums.upstreams;
    of_warps[row][3] = sums.entropies;
    of_warps[row][4] = sums.margins;
  }
  __syncthreads();
  const auto sum_of = [&](int matrix, int column) {
    double sum = 0.0;
    for (int of_warp = 0; of_warp < kClosedWarps; ++of_warp)
      sum += of_warps[matrix * kClosedWarps + of_warp][column];
    return sum;
  };
  if (warp == 0 && exists) {
    TileSums& slot = closed.sums[own * classes + k];
    for (int i = 0; i < kSums; ++i) slot.of[i] = (adds ? slot.of[i] : 0.0) + sum_of(i, lane);
  }
  if (threadIdx.x == 0 && blockIdx.y == 0) {
    ClosedSums& slot = closed.rows[own];
    const ClosedSums before = adds ? slot : ClosedSums{};
    slot = {before.tiles + static_cast<int>(sum_of(kSums, 0)), before.weights + sum_of(kSums, 1),
            before.upstreams + sum_of(kSums, 2), before.entropies + sum_of(kSums, 3),
            before.margins + sum_of(kSums, 4)};
  }
  if (closed.level_sums == nullptr) return;

  // D of all pairs of two tiles in both directions, of which each block has the share of its
  // classes.
  const bool is_first = blockIdx.y == 0 && lane == 0;
  const TileSums own_class = exists ? rows.sums[own * classes + k] : TileSums{};
  const RowSums& own_sums = rows.row_sums[own];
  for (int level = 0; level < problem.level_count; ++level) {
    double similar = 0.0, dissimilar = 0.0;
    unsigned long long active = 0;
    tiles.for_closed_tiles([&](TileState state, int64_t column) {
      const Relation relation = relation_of(label_set(problem, problem.rows, own, level),
                                            label_set(problem, problem.columns, column, level));
      const RowSums& of_tile = columns.row_sums[column];
      double divergences = 0.0;
      if (exists) {
        const TileSums& of_column = columns.sums[column * classes + k];
        divergences -= own_class.p() * of_column.log_p() + of_column.p() * own_class.log_p();
      }
      if (is_first)
        divergences += of_tile.weight * own_sums.entropy + own_sums.weight * of_tile.entropy;
      if (relation == Relation::similar) similar += divergences;
      if (relation != Relation::dissimilar || state != TileState::inside) return;
      dissimilar -= divergences;
      if (!is_first) return;
      dissimilar += 2.0 * static_cast<double>(problem.margin) * own_sums.weight * of_tile.weight;
      active += 2ull * static_cast<unsigned>(own_sums.count) * static_cast<unsigned>(of_tile.count);
    });
    similar = reduce_block<Sum>(similar);
    dissimilar = reduce_block<Sum>(dissimilar);
    active = reduce_block<Sum>(active);
    if (threadIdx.x > 0) continue;
    LevelSums& slot =
        closed.level_sums[(own * gridDim.y + blockIdx.y) * problem.level_count + level];
    const LevelSums before = adds ? slot : LevelSums{};
    slot = {before.similar + similar, before.dissimilar + dissimilar, before.active + active};
  }
}

// ---- for finish_kernel --------------------------------------------------------------------------

// What the closed tiles add to a row.
template <typename acc_t>
struct ClosedRow {
  bool any;
  double weight, upstream;  // of the row
  double pair_weights;      // sum of g w_j (u_i + u_j)
  ClosedSums of_tile;
  const TileSums* sums;
  const acc_t* log_p;
  int64_t classes;

  __device__ ClosedRow(const Problem<acc_t>& problem, const Chunk<acc_t>& chunk,
                       const ClosedForms& closed, int64_t local)
      : any(closed.rows != nullptr && closed.rows[(chunk.first + local) / kTile].tiles > 0 &&
            takes_part(problem, problem.rows, chunk.first + local)) {
    if (!any) return;
    const Side<acc_t>& rows = problem.rows;
    const int64_t row = chunk.first + local, tile = row / kTile;
    const bool with_upstream = rows.upstream != nullptr || problem.columns.upstream != nullptr;
    weight = static_cast<double>(value_or(rows.weights, rows, row, acc_t(1)));
    upstream =
        static_cast<double>(value_or(rows.upstream, rows, row, acc_t(with_upstream ? 0 : 1)));
    of_tile = closed.rows[tile];
    pair_weights = upstream * of_tile.weights + of_tile.upstreams;
    sums = closed.sums + tile * problem.classes;
    log_p = rows.log_p + row * problem.classes;
    classes = problem.classes;
  }

  __device__ double p(int64_t k) const {
    return probability(static_cast<double>(log_p[k]), classes);
  }

  // The row's A and B.
  __device__ double a(int64_t k) const {
    if (!any) return 0.0;
    const double of_columns = upstream * sums[k].log_p() + sums[k].upstream_log_p();
    return weight * (pair_weights * static_cast<double>(log_p[k]) - of_columns);
  }
  __device__ double b(int64_t k) const {
    if (!any) return 0.0;
    const double of_columns = upstream * sums[k].p() + sums[k].upstream_p();
    return weight * (pair_weights * p(k) - of_columns);
  }

  // The row's loss, by a whole block.
  __device__ double loss() const {
    double of_classes = 0.0;
    for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
      const double log = static_cast<double>(log_p[k]);
      of_classes += p(k) * (of_tile.weights * log - sums[k].log_p()) - sums[k].p() * log;
    }
    return weight * (reduce_block<Sum>(of_classes) + of_tile.entropies + of_tile.margins);
  }
};

}  // namespace
}  // namespace pairloss::cuda
