// D_ij and D_ji of a tile of 64 rows x 64 columns in FMA, straight from the definition: a sum over
// classes of P times a difference of rows of L. A thread holds 4 x 4 pairs in registers.
#pragma once

#include "cuda/tiles.cuh"

namespace pairloss::cuda {
namespace {

constexpr int kStep = 16;  // classes that are staged at a time
constexpr int kPad = 4;  // keeps 16-byte alignment, and transposed stores at two-way bank conflicts

template <typename acc_t>
struct Divergences {
  acc_t ij[kMicro][kMicro] = {}, ji[kMicro][kMicro] = {};
};

// tile[k][r] = matrix[first + r][k0 + k], 0 outside of `rows` and `classes`.
template <typename Tile, typename acc_t>
__device__ void stage_transposed(Tile& tile, const acc_t* matrix, int64_t rows, int64_t classes,
                                 int64_t first, int64_t k0) {
#pragma unroll 2  // four would hold the addresses of all in registers
  for (int e = threadIdx.x; e < kTile * kStep; e += FmaLayout::kThreads) {
    const int k = e % kStep, r = e / kStep;
    const bool inside = first + r < rows && k0 + k < classes;
    tile[k][r] = inside ? matrix[(first + r) * classes + k0 + k] : acc_t(0);
  }
}

// Adds `count` staged classes to the thread's 4 x 4 divergences. The two directions are the same
// arithmetic with the roles exchanged (and spelt fma, not left to contraction), so D_ij of the pair
// (i, j) and D_ji of the pair (j, i), which another block computes, agree to the bit, and so do the
// marks made of them.
template <bool kUnbounded, typename Tile, typename acc_t>
__device__ __forceinline__ void add_classes(int count, const Tile& p_i, const Tile& log_p_i,
                                            const Tile& p_j, const Tile& log_p_j, int i0, int j0,
                                            Divergences<acc_t>& divergences) {
  // The sums of a step are added apart: one chain over K = 4096 was off by 1.0e-6 where this is by
  // 0.4e-6 (D = 2, float).
  acc_t step_ij[kMicro][kMicro] = {}, step_ji[kMicro][kMicro] = {};
#pragma unroll 1  // a second step costs the registers of a second block on the multiprocessor
  for (int k = 0; k < count; ++k) {
    acc_t p_row[kMicro], log_p_row[kMicro], p_column[kMicro], log_p_column[kMicro];
#pragma unroll
    for (int m = 0; m < kMicro; ++m) {
      p_row[m] = p_i[k][i0 + m];
      log_p_row[m] = log_p_i[k][i0 + m];
      p_column[m] = p_j[k][j0 + m];
      log_p_column[m] = log_p_j[k][j0 + m];
    }
#pragma unroll
    for (int r = 0; r < kMicro; ++r) {
#pragma unroll
      for (int c = 0; c < kMicro; ++c) {
        const acc_t log_ratio = log_p_row[r] - log_p_column[c];
        step_ij[r][c] = add_kl_term<kUnbounded>(step_ij[r][c], p_row[r], log_ratio);
        step_ji[r][c] = add_kl_term<kUnbounded>(step_ji[r][c], p_column[c], -log_ratio);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kMicro; ++r) {
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      divergences.ij[r][c] += step_ij[r][c];
      divergences.ji[r][c] += step_ji[r][c];
    }
  }
}

// The share of `classes` in the divergences of the tile whose first pair is (row, column). By a
// block in FmaLayout.
template <typename acc_t>
__device__ __forceinline__ void add_divergences(const Problem<acc_t>& problem, int64_t row,
                                                int64_t column, Range classes,
                                                Divergences<acc_t>& divergences) {
  PAIRLOSS_SHARED(acc_t, p_i, [kStep][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, log_p_i, [kStep][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, p_j, [kStep][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, log_p_j, [kStep][kTile + kPad]);

  const Side<acc_t>&rows = problem.rows, &columns = problem.columns;
  const int i0 = FmaLayout::row_quad() * kMicro, j0 = FmaLayout::column_quad(0) * kMicro;
  const int t = threadIdx.x % kTile;
  int unbounded = is_unbounded(rows, row + t) | is_unbounded(columns, column + t);
  // Also the barrier behind which the last step of the tile before has been read.
  unbounded = __syncthreads_or(unbounded);
  for (int64_t k0 = classes.begin; k0 < classes.end; k0 += kStep) {
    if (k0 > classes.begin) __syncthreads();  // the step before has been read
    stage_transposed(p_i, rows.p, rows.rows, problem.classes, row, k0);
    stage_transposed(log_p_i, rows.log_p, rows.rows, problem.classes, row, k0);
    stage_transposed(p_j, columns.p, columns.rows, problem.classes, column, k0);
    stage_transposed(log_p_j, columns.log_p, columns.rows, problem.classes, column, k0);
    __syncthreads();
    const int count = classes.end - k0 < kStep ? static_cast<int>(classes.end - k0) : kStep;
    if (unbounded)
      add_classes<true>(count, p_i, log_p_i, p_j, log_p_j, i0, j0, divergences);
    else
      add_classes<false>(count, p_i, log_p_i, p_j, log_p_j, i0, j0, divergences);
  }
}

// ---- K in parts, for batches with too few tiles to fill a GPU -----------------------------------

// Part `index` of K, which begins at a step.
PAIRLOSS_HOST_DEVICE Range class_part(int64_t classes, int64_t index, int64_t parts) {
  const Range steps = part(ceil_div(classes, kStep), index, parts);
  const int64_t end = steps.end * kStep;
  return {steps.begin * kStep, end < classes ? end : classes};
}

// (parts, tiles, elements of a thread, threads): a thread finds its own elements again, at
// consecutive addresses in a warp.
constexpr int kTileElements = 2 * kTile * kTile;

template <typename Layout, typename acc_t, typename Visit>
__device__ __forceinline__ void for_partial(acc_t* tile,
                                            Divergences<acc_t> (&divergences)[Layout::kQuads],
                                            Visit visit) {
#pragma unroll
  for (int e = 0; e < kTileElements / Layout::kThreads; ++e) {
    Divergences<acc_t>& word = divergences[e / (2 * kMicro * kMicro)];
    const int r = e / kMicro % kMicro, c = e % kMicro;
    visit(tile[e * Layout::kThreads + threadIdx.x],
          (e / (kMicro * kMicro) % 2 == 0 ? word.ij : word.ji)[r][c]);
  }
}

template <typename Layout, typename acc_t>
__device__ __forceinline__ void store_part(acc_t* partial, int64_t tile,
                                           Divergences<acc_t> (&divergences)[Layout::kQuads]) {
  for_partial<Layout>(partial + tile * kTileElements, divergences,
                      [](acc_t& stored, acc_t element) { stored = element; });
}

template <typename Layout, typename acc_t>
__device__ __forceinline__ void load_sum(acc_t* partial, int64_t tile,
                                         Divergences<acc_t> (&divergences)[Layout::kQuads]) {
  for_partial<Layout>(partial + tile * kTileElements, divergences,
                      [](acc_t stored, acc_t& element) { element = stored; });
}

// Grid (parts, tiles). Writes the parts of all tiles of the chunk that are for FMA.
template <typename acc_t>
__global__ void __launch_bounds__(FmaLayout::kThreads)
    partial_divergences_kernel(Problem<acc_t> problem, Chunk<acc_t> chunk) {
  const PairTile tile = chunk.tiles.at(blockIdx.y);
  if (!is_for_fma(problem, chunk, tile)) return;
  Divergences<acc_t> divergences[FmaLayout::kQuads];
  add_divergences(problem, chunk.first + int64_t{tile.row} * kTile,
                  chunk.first_column() + int64_t{tile.column} * kTile,
                  class_part(problem.classes, blockIdx.x, gridDim.x), divergences[0]);
  store_part<FmaLayout>(chunk.partial, int64_t{blockIdx.x} * gridDim.y + blockIdx.y, divergences);
}

// A thread per element: part 0 becomes the sum of all parts, in their order.
template <typename acc_t>
__global__ void sum_parts_kernel(int64_t elements, int parts, acc_t* partial) {
  const int64_t element = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (element >= elements) return;
  acc_t sum = 0;
  for (int part = 0; part < parts; ++part) sum += partial[part * elements + element];
  partial[element] = sum;
}

}  // namespace
}  // namespace pairloss::cuda
