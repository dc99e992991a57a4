// The rows as the tensor cores take them: relative to one reference row c, and split into three
// bf16 (split.cuh).
//
//   P' = P - c_P    L' = L - c_L    q_j = c_P . (L_j - L_r)    h_i = q_i + P'_i . L'_i
//   D_ij = sum_k P_ik (L_ik - L_jk) = h_i - q_j - P'_i . L'_j
//
// Without a reference, rows that are nearly uniform, which is how training starts, would lose in
// the differences what float32 holds of them. c_P is the least P of each class and c_L the greatest
// L: near the rows where all rows are alike, and never in the way. As c_P <= P_j, |q_j| is at most
// P_j . |L_j|; with the mean instead, a class that some rows mask by -1e9 would make q_j and
// P'_i . L'_j some 1e8 each, of opposite sign. And extrema are the same in whatever order they are
// taken. r is any row, the first one: for rows that are all alike, it takes out of h and q what
// would cancel in their difference, and with c_P <= P_r it is never in the way either.
#pragma once

#include <math.h>

#include <cstring>

#include "cuda/mma.cuh"
#include "cuda/pairs.cuh"
#include "cuda/reductions.cuh"
#include "cuda/split.cuh"

namespace pairloss::cuda {
namespace {

// ---- layout -------------------------------------------------------------------------------------
//
// Blocks (row tile, slice) of 64 rows x 16 classes, each with the planes P'1, P'2, P'3, L'1, L'2,
// L'3. Rows and classes that do not exist are 0, and so are the rows that are not bounded. Shared
// memory gets a block as it is.

constexpr int kSlice = 16;  // classes of a block: the depth of one mma
constexpr int kOctetClasses = 8, kSliceOctets = kSlice / kOctetClasses;
constexpr int kPlaneOctets = kTile * kSliceOctets;
constexpr int kMatrices = 2, kBlockOctets = kMatrices * kPlanes * kPlaneOctets;

// Where in its plane the octet `half` of a row is. Four rows fill the 32 banks once; the exclusive
// or lets ldmatrix take eight rows in one go without a conflict, if they are neighbours (the first
// a multiple of 8) or every fourth one.
PAIRLOSS_HOST_DEVICE int plane_octet(int row, int half) {
  const int line = row / 4;
  return line * 8 + ((row % 4 * kSliceOctets + half) ^ (line % 8));
}

PAIRLOSS_HOST_DEVICE int slice_count(int64_t classes) {
  return static_cast<int>(ceil_div(classes, kSlice));
}

template <typename acc_t>
PAIRLOSS_HOST_DEVICE Octet* plane_block(const Side<acc_t>& side, int slices, int64_t row_tile,
                                        int slice) {
  return side.planes + (row_tile * slices + slice) * kBlockOctets;
}

// ---- the reference row --------------------------------------------------------------------------

// In the order of the floats.
PAIRLOSS_HOST_DEVICE int to_ordered(float x) {
  int bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

PAIRLOSS_HOST_DEVICE float from_ordered(int ordered) {
  const int bits = ordered >= 0 ? ordered : ordered ^ 0x7fffffff;
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

constexpr int kExtremaThreads = 256;
constexpr unsigned long long kNoRow = ~0ull;

// Before extrema_kernel, by a whole block.
__device__ inline void clear_extrema(const Extrema& extrema, int64_t classes) {
  if (extrema.least_p == nullptr) return;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
    extrema.least_p[k] = to_ordered(INFINITY);
    extrema.greatest_log_p[k] = to_ordered(-INFINITY);
  }
  if (threadIdx.x > 0) return;
  *extrema.some_unbounded = 0;
  *extrema.first_row = kNoRow;
}

// Rows without a valid label must not reach the others, not even through the reference. (Rows that
// a similarity matrix leaves out are taken along; they reach no more than rounding.)
template <typename acc_t>
__device__ bool takes_part(const Problem<acc_t>& problem, const Side<acc_t>& side, int64_t row) {
  if (row >= side.rows) return false;
  if (side.labels == nullptr) return true;
  for (int level = 0; level < problem.level_count; ++level)
    if (problem.label(side, row, level) != problem.ignore_index) return true;
  return false;
}

// Grid: the row tiles of the batch, then those of the reference set. Writes tile_unbounded, and
// joins the extrema of the tile's bounded rows, and the first of them, to those of the others.
template <typename acc_t>
__global__ void __launch_bounds__(kExtremaThreads, 4) extrema_kernel(Problem<acc_t> problem) {
  const int64_t row_tiles = ceil_div(problem.rows.rows, kTile);
  const bool of_rows = blockIdx.x < row_tiles;
  const Side<acc_t>& side = of_rows ? problem.rows : problem.columns;
  const int64_t tile = of_rows ? blockIdx.x : blockIdx.x - row_tiles, first = tile * kTile;

  PAIRLOSS_SHARED(int, counts, [kTile]);
  int unbounded = 0;
  if (threadIdx.x < kTile) {
    const int64_t row = first + threadIdx.x;
    const bool valid = takes_part(problem, side, row);
    unbounded = valid && is_unbounded(side, row);
    counts[threadIdx.x] = valid && !unbounded;
    if (valid && !unbounded)
      atomicMin(problem.extrema.first_row,
                static_cast<unsigned long long>(of_rows ? row : problem.rows.rows + row));
  }
  unbounded = __syncthreads_or(unbounded);
  if (threadIdx.x == 0) {
    side.tile_unbounded[tile] = unbounded;
    if (unbounded) atomicOr(problem.extrema.some_unbounded, 1);
  }

  for (int64_t k = threadIdx.x % kWarp; k < problem.classes; k += kWarp) {
    float least = INFINITY, greatest = -INFINITY;
    for (int r = threadIdx.x / kWarp; r < kTile; r += kExtremaThreads / kWarp) {
      if (!counts[r]) continue;
      const int64_t element = (first + r) * problem.classes + k;
      least = fminf(least, static_cast<float>(side.p[element]));
      greatest = fmaxf(greatest, static_cast<float>(side.log_p[element]));
    }
    atomicMin(&problem.extrema.least_p[k], to_ordered(least));
    atomicMax(&problem.extrema.greatest_log_p[k], to_ordered(greatest));
  }
}

// ---- the planes ---------------------------------------------------------------------------------

// Eight classes of one matrix, by planes.
struct SplitOctet {
  Octet of_plane[kPlanes] = {};

  __device__ void set(int k, float x) {
    uint32_t bits[kPlanes];
    split(x, bits);
    for (int plane = 0; plane < kPlanes; ++plane)
      of_plane[plane].pairs[k / 2] |= bits[plane] << (k % 2 * 16);
  }
};

// A block per row of the batch, then of the reference set, both to whole tiles. Writes planes, h
// and q. L as it is stored keeps its digits in the difference (see softmax_row()), P does not: it
// is made anew, in double. h and q are those of the P' and L' that the planes hold.
template <typename acc_t>
__global__ void planes_kernel(Problem<acc_t> problem) {
  const int64_t padded_rows = ceil_div(problem.rows.rows, kTile) * kTile;
  const bool of_rows = blockIdx.x < padded_rows;
  const Side<acc_t>& side = of_rows ? problem.rows : problem.columns;
  const int64_t row = of_rows ? blockIdx.x : blockIdx.x - padded_rows;
  const int slices = slice_count(problem.classes);
  const unsigned long long first = *problem.extrema.first_row;
  const bool exists = first != kNoRow && row < side.rows && !side.unbounded[row];
  const auto batch_rows = static_cast<unsigned long long>(problem.rows.rows);
  const acc_t* const log_p_r = first < batch_rows
                                   ? problem.rows.log_p + first * problem.classes
                                   : problem.columns.log_p + (first - batch_rows) * problem.classes;

  double h = 0.0, q = 0.0;
  for (int octet = threadIdx.x; octet < slices * kSliceOctets; octet += blockDim.x) {
    SplitOctet p, log_p;
    for (int k = 0; k < kOctetClasses; ++k) {
      const int64_t klass = int64_t{octet} * kOctetClasses + k;
      if (!exists || klass >= problem.classes) continue;
      const double stored = static_cast<double>(side.log_p[row * problem.classes + klass]);
      const double reference_p = static_cast<double>(from_ordered(problem.extrema.least_p[klass]));
      const double reference_log_p =
          static_cast<double>(from_ordered(problem.extrema.greatest_log_p[klass]));
      const auto centred_p =
          static_cast<float>(exp(stored) / static_cast<double>(problem.classes) - reference_p);
      const auto centred_log_p = static_cast<float>(stored - reference_log_p);
      p.set(k, centred_p);
      log_p.set(k, centred_log_p);
      const double of_class = reference_p * (stored - static_cast<double>(log_p_r[klass]));
      q += of_class;
      h += of_class + static_cast<double>(centred_p) * static_cast<double>(centred_log_p);
    }
    Octet* const block = plane_block(side, slices, row / kTile, octet / kSliceOctets);
    const int within = plane_octet(static_cast<int>(row % kTile), octet % kSliceOctets);
    for (int plane = 0; plane < kPlanes; ++plane) {
      block[plane * kPlaneOctets + within] = p.of_plane[plane];
      block[(kPlanes + plane) * kPlaneOctets + within] = log_p.of_plane[plane];
    }
  }
  h = reduce_block<Sum>(h);
  q = reduce_block<Sum>(q);
  if (threadIdx.x == 0) {
    side.h[row] = static_cast<float>(h);
    side.q[row] = static_cast<float>(q);
  }
}

}  // namespace
}  // namespace pairloss::cuda
