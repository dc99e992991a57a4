// D_ij and D_ji of a tile of 64 x 64 pairs on the tensor cores: with the rows in n planes
// (planes.cuh, split.cuh),
//
//   D_ij = h_i - q_j - sum over planes a + b <= n + 1 of P'_i,a . L'_j,b        D_ji likewise
//
// A block of four warps walks over the slices of its tiles, of which the next is on its way to
// shared memory while it multiplies one. A warp has both directions of 32 x 32 pairs:
// the rows are operand a and the columns operand b, P with L in the one and L with P in the other.
#pragma once

#include "cuda/divergences.cuh"
#include "cuda/planes.cuh"
#include "cuda/tiles.cuh"

namespace pairloss::cuda {
namespace {

// Rows and columns of one slice, twice: 48 KB with three bf16.
template <typename Factors>
constexpr size_t kTensorSharedBytes = 2 * 2 * Factors::kBlockOctets * sizeof(Octet);

// Sets out to copy a slice of both sides to stage = [2][kBlockOctets].
template <typename Factors, typename Stage, typename acc_t>
__device__ __forceinline__ void copy_slice(const Problem<acc_t>& problem, const Chunk<acc_t>& chunk,
                                           PairTile tile, int slice, Stage& stage) {
  const int slices = Factors::slices(problem.classes);
  const int64_t first_tile = chunk.first / kTile;
  const Octet* const rows =
      Factors::block(problem.rows.planes, slices, first_tile + tile.row, slice);
  const Octet* const columns = Factors::block(
      problem.columns.planes, slices, int64_t{chunk.first_column_tile} + tile.column, slice);
#pragma unroll
  for (int octet = 0; octet < Factors::kBlockOctets; octet += TensorLayout::kThreads) {
    // The tiles of a block that follow each other are mostly of the same rows.
    copy_async<true>(&stage[0][octet + threadIdx.x], rows + octet + threadIdx.x);
    copy_async(&stage[1][octet + threadIdx.x], columns + octet + threadIdx.x);
  }
  commit_copies();
}

using TensorDivergences = Divergences<float>[TensorLayout::kQuads];

template <typename Part>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  if constexpr (std::is_same_v<Part, Bfloat16>)
    mma_m16n8k16(d, a, b0, b1);
  else
    mma_m16n8k8(d, a, b0, b1);
}

// Takes the share of a slice's step in P'_i . L'_j (kRowsOfP) or P'_j . L'_i from D_ij or D_ji.
//
// Which row of the tile is which row of a fragment is for the addresses of ldmatrix to say: rows
// g and g + 8 are rows 4 g + 2 m and 4 g + 2 m + 1 of the warp's, columns 2 t and 2 t + 1 are
// columns 2 n and 2 n + 1 of the quad that TensorLayout names. So a lane's sums are 4 x 4
// neighbours.
//
// D_ij here and D_ji in the mirror image, where another chunk computes that, are the same products
// in the same order with the operands exchanged, so the marks made of them agree.
template <typename Factors, bool kRowsOfP, typename Stage>
__device__ __forceinline__ void subtract_products(Stage& stage, int step,
                                                  TensorDivergences& divergences) {
  constexpr int kPlanes = Factors::kPlanes;
  constexpr int kRowMatrix = kRowsOfP ? 0 : kPlanes, kColumnMatrix = kPlanes - kRowMatrix;
  const int row_planes = step * Factors::kStepBlock + kRowMatrix * kPlaneOctets;
  const int column_planes = step * Factors::kStepBlock + kColumnMatrix * kPlaneOctets;
  const int lane = threadIdx.x % kWarp, eighth = lane % 8, matrix = lane / 8;
  const int first_row = TensorLayout::warp_row() * 32;
  const int first_column = TensorLayout::warp_column() * 32;

  uint32_t rows[kPlanes][2][4];  // [plane][m]
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int row = first_row + eighth * kMicro + 2 * m + matrix % 2;
      load_matrices(rows[plane][m],
                    &stage[0][row_planes + plane * kPlaneOctets + plane_octet(row, matrix / 2)]);
    }
  }
#pragma unroll
  for (int quad = 0; quad < TensorLayout::kQuads; ++quad) {
    uint32_t columns[kPlanes][4];
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      const int column = first_column + TensorLayout::quad_of_warp(eighth / 2, quad) * kMicro +
                         matrix / 2 * 2 + eighth % 2;
      load_matrices(
          columns[plane],
          &stage[1][column_planes + plane * kPlaneOctets + plane_octet(column, matrix % 2)]);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        // Small products first: the sum is cut off at the size of what is in it already.
        float product[4] = {};
#pragma unroll
        for (int rank = kPlanes - 1; rank >= 0; --rank) {
#pragma unroll
          for (int log_p = 0; log_p <= rank; ++log_p) {
            const int p = rank - log_p;
            const int row_plane = kRowsOfP ? p : log_p, column_plane = kRowsOfP ? log_p : p;
            multiply<typename Factors::Part>(product, rows[row_plane][m],
                                             columns[column_plane][2 * n],
                                             columns[column_plane][2 * n + 1]);
          }
        }
#pragma unroll
        for (int x = 0; x < 2; ++x) {
#pragma unroll
          for (int y = 0; y < 2; ++y) {
            Divergences<float>& word = divergences[quad];
            (kRowsOfP ? word.ij : word.ji)[2 * m + x][2 * n + y] -= product[2 * x + y];
          }
        }
      }
    }
  }
}

// Takes P'_i . L'_j and P'_j . L'_i over some slices from the divergences of a tile. The first
// slice is on its way to stage[buffer] already, and leaves behind that of the next tile.
template <typename Factors, typename Stage, typename acc_t>
__device__ __forceinline__ void subtract_products(const Problem<acc_t>& problem,
                                                  const Chunk<acc_t>& chunk, PairTile tile,
                                                  Share slices, bool more, PairTile next,
                                                  int& buffer, Stage& stage,
                                                  TensorDivergences& divergences) {
  for (int slice = slices.begin; slice < slices.end; ++slice) {
    wait_for_copies<0>();
    __syncthreads();  // the slice has arrived for all threads, and that before it has been read
    if (slice + 1 < slices.end)
      copy_slice<Factors>(problem, chunk, tile, slice + 1, stage[1 - buffer]);
    else if (more)
      copy_slice<Factors>(problem, chunk, next, slices.begin, stage[1 - buffer]);
#pragma unroll
    for (int step = 0; step < Factors::kSteps; ++step) {
      subtract_products<Factors, true>(stage[buffer], step, divergences);
      subtract_products<Factors, false>(stage[buffer], step, divergences);
    }
    buffer = 1 - buffer;
  }
}

// from: aligned to four floats, so that they are one load.
__device__ __forceinline__ void load_quad(const float* from, float (&quad)[kMicro]) {
  const auto* const aligned =
      static_cast<const float*>(__builtin_assume_aligned(from, kMicro * sizeof(float)));
#pragma unroll
  for (int m = 0; m < kMicro; ++m) quad[m] = aligned[m];
}

// What is left of D_ij and D_ji: h_i - q_j and h_j - q_i.
template <typename acc_t>
__device__ __forceinline__ void add_row_terms(const Problem<acc_t>& problem,
                                              const Chunk<acc_t>& chunk, PairTile tile,
                                              TensorDivergences& divergences) {
  const int64_t i0 = chunk.first + int64_t{tile.row} * kTile + TensorLayout::row_quad() * kMicro;
  float h_i[kMicro], q_i[kMicro];
  load_quad(problem.rows.h + i0, h_i);
  load_quad(problem.rows.q + i0, q_i);
#pragma unroll
  for (int quad = 0; quad < TensorLayout::kQuads; ++quad) {
    const int64_t j0 = chunk.first_column() + int64_t{tile.column} * kTile +
                       TensorLayout::column_quad(quad) * kMicro;
    float h_j[kMicro], q_j[kMicro];
    load_quad(problem.columns.h + j0, h_j);
    load_quad(problem.columns.q + j0, q_j);
#pragma unroll
    for (int r = 0; r < kMicro; ++r) {
#pragma unroll
      for (int c = 0; c < kMicro; ++c) {
        divergences[quad].ij[r][c] += h_i[r] - q_j[c];
        divergences[quad].ji[r][c] += h_j[c] - q_i[r];
      }
    }
  }
}

// Grid (parts, tiles). Writes the parts of all tiles of the chunk that are not for FMA.
template <typename Factors, typename acc_t>
__global__ void __launch_bounds__(TensorLayout::kThreads, 2)
    tensor_partial_kernel(Problem<acc_t> problem, Chunk<acc_t> chunk) {
  PAIRLOSS_DYNAMIC_SHARED(Octet, stage, [2][2][Factors::kBlockOctets]);
  const PairTile tile = chunk.tiles.at(blockIdx.y);
  if (is_for_fma(problem, chunk, tile)) return;
  const Share slices = share(Factors::slices(problem.classes), blockIdx.x, gridDim.x);
  int buffer = 0;
  copy_slice<Factors>(problem, chunk, tile, slices.begin, stage[buffer]);
  TensorDivergences divergences;
  subtract_products<Factors>(problem, chunk, tile, slices, false, tile, buffer, stage, divergences);
  store_part<TensorLayout>(chunk.partial, int64_t{blockIdx.x} * gridDim.y + blockIdx.y,
                           divergences);
}

}  // namespace
}  // namespace pairloss::cuda
