// From the divergences of a tile: the rows' losses, the sums of each level, and the marks that the
// gradient is made of.
#pragma once

#include "cuda/divergences.cuh"
#include "cuda/pairs.cuh"
#include "cuda/reductions.cuh"

namespace pairloss::cuda {
namespace {

constexpr int kTileWarps = kTileThreads / kWarp;

// Over pairs in both directions, without the level's scale. Every pair of the batch is in it twice.
struct LevelSums {
  double similar, dissimilar;
  unsigned long long active;  // dissimilar pairs
};

// Rows first .. first + rows of the problem, and the partial results about them. A split is the
// share of the columns j that one block walks over.
template <typename acc_t>
struct Chunk {
  int64_t first = 0, rows = 0;
  int64_t stride = 0;  // rows of the largest chunk, a multiple of kTile
  int pair_splits = 0, product_splits = 0, class_parts = 1;
  acc_t* partial = nullptr;         // divergences in parts, see divergences.cuh; null with one part
  double* loss = nullptr;           // (pair_splits, stride) of the rows
  unsigned* has_pair = nullptr;     // (pair_splits, stride) some pair of the row takes part
  LevelSums* level_sums = nullptr;  // (row tiles, pair_splits, kTileWarps, G), or null
  uint64_t* marks = nullptr;        // see marks_index(); null without a gradient
  acc_t* a = nullptr;               // (product_splits, stride, K)
  acc_t* b = nullptr;               // (product_splits, stride, K)
};

// The marks of 4 x 4 pairs are a word: those of (r, c) begin at bit 16 r + 4 c, first D_ij's. A
// quad is four rows or columns.
constexpr int kPairBits = 2 * kMarkBits, kRowBits = kMicro * kPairBits;
static_assert(kMicro * kRowBits == 64);

template <typename acc_t>
PAIRLOSS_HOST_DEVICE int64_t marks_index(const Chunk<acc_t>& chunk, int64_t columns, int level,
                                         int64_t column_quad, int64_t row_quad) {
  const int64_t column_quads = ceil_div(columns, kTile) * kTileLanes;
  return (level * column_quads + column_quad) * (chunk.stride / kMicro) + row_quad;
}

// One level of the thread's 4 x 4 pairs, the first of which is (i0, j0). Adds to the rows' losses,
// and sets bit r of has_pair.
template <typename acc_t>
__device__ __forceinline__ uint64_t add_level(const Problem<acc_t>& problem, int level, int64_t i0,
                                              int64_t j0, const Divergences<acc_t>& divergences,
                                              const acc_t (&row_weights)[kMicro],
                                              const acc_t (&column_weights)[kMicro],
                                              acc_t (&row_loss)[kMicro], unsigned& has_pair,
                                              acc_t& similar_sum, acc_t& dissimilar_sum,
                                              unsigned& active) {
  const Scale<acc_t> scale = problem.levels[level].scale;
  int64_t column_labels[kMicro];
#pragma unroll
  for (int c = 0; c < kMicro; ++c) column_labels[c] = problem.label(problem.columns, j0 + c, level);
  uint64_t marks = 0;
#pragma unroll
  for (int r = 0; r < kMicro; ++r) {
    const int64_t row_label = problem.label(problem.rows, i0 + r, level);
    acc_t similar = 0, dissimilar = 0;
    uint64_t row_marks = 0;
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      int kind_ij, kind_ji;
      problem.kinds(i0 + r, j0 + c, row_label, column_labels[c], kind_ij, kind_ji);
      const acc_t weight = row_weights[r] * column_weights[c];
      unsigned mark = add_pair(kind_ij, divergences.ij[r][c], problem.margin, weight, similar,
                               dissimilar, active);
      mark |= add_pair(kind_ji, divergences.ji[r][c], problem.margin, weight, similar, dissimilar,
                       active)
              << kMarkBits;
      row_marks |= uint64_t{mark} << (c * kPairBits);
      if (kind_ij != 0 || kind_ji != 0) has_pair |= 1u << r;
    }
    marks |= row_marks << (r * kRowBits);
    row_loss[r] += scale.similar * similar + scale.dissimilar * dissimilar;
    similar_sum += similar;
    dissimilar_sum += dissimilar;
  }
  return marks;
}

// Grid (pair_splits, row tiles of the chunk). Writes the chunk's loss, has_pair and marks, and adds
// to its level_sums, which begin with the first chunk.
template <typename acc_t>
__global__ void __launch_bounds__(kTileThreads, sizeof(acc_t) == sizeof(float) ? 2 : 1)
    losses_kernel(Problem<acc_t> problem, Chunk<acc_t> chunk) {
  const int x = threadIdx.x % kTileLanes, y = threadIdx.x / kTileLanes;
  const int64_t local = int64_t{blockIdx.y} * kTile, i0 = chunk.first + local + y * kMicro;
  const int64_t column_tiles = ceil_div(problem.columns.rows, kTile);
  const Range tiles = part(column_tiles, blockIdx.x, chunk.pair_splits);
  const int64_t slot =
      (int64_t{blockIdx.y} * chunk.pair_splits + blockIdx.x) * kTileWarps + threadIdx.x / kWarp;

  // Not in registers, of which the divergences take most. A row's sum is touched by the thread with
  // x = 0 alone, so it needs no barrier.
  PAIRLOSS_SHARED(double, loss_i, [kTile]);
  if (x == 0) {
    for (int r = 0; r < kMicro; ++r) loss_i[y * kMicro + r] = 0.0;
  }
  unsigned has_pair = 0;

  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const int64_t j0 = tile * kTile + x * kMicro;
    Divergences<acc_t> divergences;
    if (chunk.partial != nullptr)
      load_divergences(chunk.partial, blockIdx.y * column_tiles + tile, divergences);
    else
      add_divergences(problem, chunk.first + local, tile * kTile, {0, problem.classes},
                      divergences);
    acc_t row_weights[kMicro], column_weights[kMicro], row_loss[kMicro] = {};
#pragma unroll
    for (int m = 0; m < kMicro; ++m) {
      row_weights[m] = value_or(problem.rows.weights, problem.rows, i0 + m, acc_t(1));
      column_weights[m] = value_or(problem.columns.weights, problem.columns, j0 + m, acc_t(1));
    }

    for (int level = 0; level < problem.level_count; ++level) {
      acc_t similar = 0, dissimilar = 0;
      unsigned active = 0;
      const uint64_t marks =
          add_level(problem, level, i0, j0, divergences, row_weights, column_weights, row_loss,
                    has_pair, similar, dissimilar, active);
      if (chunk.marks != nullptr)
        chunk.marks[marks_index(chunk, problem.columns.rows, level, tile * kTileLanes + x,
                                local / kMicro + y)] = marks;
      if (chunk.level_sums == nullptr) continue;
      // Each warp has sums of its own, which only its first lane touches.
      similar = reduce_lanes<Sum>(similar);
      dissimilar = reduce_lanes<Sum>(dissimilar);
      active = reduce_lanes<Sum>(active);
      if (threadIdx.x % kWarp != 0) continue;
      LevelSums& sums = chunk.level_sums[slot * problem.level_count + level];
      if (chunk.first == 0 && tile == tiles.begin) sums = {0.0, 0.0, 0};
      sums.similar += static_cast<double>(similar);
      sums.dissimilar += static_cast<double>(dissimilar);
      sums.active += active;
    }

    // What one tile adds to a row is a sum in acc_t; only from there on is it double, of which
    // consumer GPUs have little.
#pragma unroll
    for (int r = 0; r < kMicro; ++r) {
      const double of_tile = static_cast<double>(reduce_lanes<Sum, kTileLanes>(row_loss[r]));
      const int row = y * kMicro + r;
      if (x == 0) loss_i[row] = loss_i[row] + of_tile;
    }
  }

  has_pair = reduce_lanes<Or, kTileLanes>(has_pair);
  if (x != 0) return;
  for (int r = 0; r < kMicro; ++r) {
    const int64_t row = blockIdx.x * chunk.stride + local + y * kMicro + r;
    chunk.loss[row] = loss_i[y * kMicro + r];
    chunk.has_pair[row] = has_pair >> r & 1;
  }
}

}  // namespace
}  // namespace pairloss::cuda
