// The rows as the tensor cores take them: relative to one reference row c, and split into parts
// (split.cuh).
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
// Blocks (row tile, slice) of 64 rows x some classes, each with the planes P'1, P'2, ..., L'1, L'2,
// ..., of its classes from step to step of an mma. Rows and classes that do not exist are 0, and so
// are the rows that are not bounded. Shared memory gets a block as it is.

constexpr int kMatrices = 2;
constexpr int kStepOctets = 2;  // of a row: the depth of an mma, 16 bf16 or 8 tf32
constexpr int kPlaneOctets = kTile * kStepOctets;
constexpr int kSplitClasses = 8;  // that are split at a time

// Where in its plane the octet `half` of a row is. Four rows fill the 32 banks once; the exclusive
// or lets ldmatrix take eight rows in one go without a conflict, if they are neighbours (the first
// a multiple of 8) or every fourth one.
PAIRLOSS_HOST_DEVICE int plane_octet(int row, int half) {
  const int line = row / 4;
  return line * 8 + ((row % 4 * kStepOctets + half) ^ (line % 8));
}

// Each element in kPlanes_ parts; kSteps_ mma make a block's classes.
template <typename Part_, int kPlanes_, int kSteps_ = 1>
struct Planes {
  using Part = Part_;
  static constexpr int kPlanes = kPlanes_, kSteps = kSteps_;
  static constexpr int kOctetClasses = 128 / Part::kBits;
  static constexpr int kDepth = kStepOctets * kOctetClasses;
  static constexpr int kSlice = kSteps * kDepth;  // classes of a block
  static constexpr int kStepBlock = kMatrices * kPlanes * kPlaneOctets;
  static constexpr int kBlockOctets = kSteps * kStepBlock;

  static PAIRLOSS_HOST_DEVICE int slices(int64_t classes) {
    return static_cast<int>(ceil_div(classes, kSlice));
  }

  static PAIRLOSS_HOST_DEVICE Octet* block(Octet* planes, int slices, int64_t row_tile, int slice) {
    return planes + (row_tile * slices + slice) * kBlockOctets;
  }

  // What the tensor cores make of x y: small products first.
  static __device__ double multiply(float x, float y) {
    uint32_t of_x[kPlanes], of_y[kPlanes];
    split<Part>(x, of_x);
    split<Part>(y, of_y);
    double sum = 0.0;
#pragma unroll
    for (int rank = kPlanes - 1; rank >= 0; --rank) {
#pragma unroll
      for (int plane = 0; plane <= rank; ++plane)
        sum += static_cast<double>(Part::value(of_x[plane])) *
               static_cast<double>(Part::value(of_y[rank - plane]));
    }
    return sum;
  }

  // The parts of a row's elements x of a matrix, from class first on, a multiple of kSplitClasses.
  static __device__ void store(Octet* planes, int slices, int64_t row, int matrix, int first,
                               const float (&x)[kSplitClasses]) {
#pragma unroll
    for (int begin = 0; begin < kSplitClasses; begin += kOctetClasses) {
      Octet parts[kPlanes] = {};
#pragma unroll
      for (int k = 0; k < kOctetClasses; ++k) {
        uint32_t bits[kPlanes];
        split<Part>(x[begin + k], bits);
#pragma unroll
        for (int plane = 0; plane < kPlanes; ++plane)
          parts[plane].words[k * Part::kBits / 32] |= bits[plane] << k * Part::kBits % 32;
      }
      const int klass = first + begin, slice = klass / kSlice;
      if (slice >= slices) return;
      const int step = klass % kSlice / kDepth, half = klass % kDepth / kOctetClasses;
      Octet* const to = block(planes, slices, row / kTile, slice) + step * kStepBlock +
                        matrix * kPlanes * kPlaneOctets +
                        plane_octet(static_cast<int>(row % kTile), half);
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) to[plane * kPlaneOctets] = parts[plane];
    }
  }
};

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
    const unsigned counted = __ballot_sync(kAllLanes, valid && !unbounded);
    if (static_cast<int>(threadIdx.x % kWarp) == __ffs(static_cast<int>(counted)) - 1)
      atomicMin(problem.extrema.first_row,
                static_cast<unsigned long long>(of_rows ? row : problem.rows.rows + row));
  }
  unbounded = __syncthreads_or(unbounded);
  if (threadIdx.x == 0) {
    side.tile_unbounded[tile] = unbounded;
    if (unbounded) atomicOr(problem.extrema.some_unbounded, 1);
  }

  constexpr int kWarps = kExtremaThreads / kWarp;
  PAIRLOSS_SHARED(float, least_p, [kWarps][kWarp]);
  PAIRLOSS_SHARED(float, greatest_log_p, [kWarps][kWarp]);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t begin = 0; begin < problem.classes; begin += kWarp) {
    const int64_t k = begin + lane;
    float least = INFINITY, greatest = -INFINITY;
    for (int r = warp; r < kTile && k < problem.classes; r += kWarps) {
      if (!counts[r]) continue;
      const int64_t element = (first + r) * problem.classes + k;
      least = fminf(least, static_cast<float>(side.p[element]));
      greatest = fmaxf(greatest, static_cast<float>(side.log_p[element]));
    }
    least_p[warp][lane] = least;
    greatest_log_p[warp][lane] = greatest;
    __syncthreads();
    if (k < problem.classes && warp < 2) {
      for (int other = 0; other < kWarps; ++other) {
        least = fminf(least, least_p[other][lane]);
        greatest = fmaxf(greatest, greatest_log_p[other][lane]);
      }
      if (warp == 0)
        atomicMin(&problem.extrema.least_p[k], to_ordered(least));
      else
        atomicMax(&problem.extrema.greatest_log_p[k], to_ordered(greatest));
    }
    __syncthreads();
  }
}

// ---- the planes ---------------------------------------------------------------------------------

// Whether the divergences and the gradient's sums take the same planes. Mode: see precision.cuh.
template <typename Mode>
constexpr bool kSharedPlanes = std::is_same_v<typename Mode::Factors, typename Mode::SumFactors>;

// Over the threads of a row: a power of two of them up to a warp, or a whole block.
template <typename T>
__device__ T sum_of_row(T value, int row_threads) {
  if (row_threads > kWarp) return reduce_block<Sum>(value);
  for (int lanes = row_threads / 2; lanes > 0; lanes /= 2)
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

// Of the rows of the batch, then of those of the reference set, both to whole tiles, each of which
// has row_threads. Writes planes, h and q. L as it is stored keeps its digits in the difference
// (see softmax_row()), P does not: it is made anew, in double. h is that of the P' and L' that the
// planes hold and of the products that are made of them: of two rows that are nearly equal, what is
// missing cancels.
template <typename Mode, typename acc_t>
__global__ void planes_kernel(Problem<acc_t> problem, int row_threads) {
  using Factors = typename Mode::Factors;
  using SumFactors = typename Mode::SumFactors;
  const int64_t padded_rows = ceil_div(problem.rows.rows, kTile) * kTile;
  const int64_t place = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / row_threads;
  const int thread = threadIdx.x % row_threads;
  const bool of_rows = place < padded_rows;
  const Side<acc_t>& side = of_rows ? problem.rows : problem.columns;
  const int64_t row = of_rows ? place : place - padded_rows;
  const unsigned long long first = *problem.extrema.first_row;
  const bool exists = first != kNoRow && row < side.rows && !side.unbounded[row];
  const auto batch_rows = static_cast<unsigned long long>(problem.rows.rows);
  const acc_t* const log_p_r = first < batch_rows
                                   ? problem.rows.log_p + first * problem.classes
                                   : problem.columns.log_p + (first - batch_rows) * problem.classes;

  double h = 0.0, q = 0.0;
  const int slices = Factors::slices(problem.classes);
  const int sum_slices = SumFactors::slices(problem.classes);
  for (int begin = thread * kSplitClasses; begin < sum_slices * SumFactors::kSlice;
       begin += row_threads * kSplitClasses) {
    float p[kSplitClasses] = {}, log_p[kSplitClasses] = {};
#pragma unroll
    for (int k = 0; k < kSplitClasses; ++k) {
      const int64_t klass = begin + k;
      if (!exists || klass >= problem.classes) continue;
      const double stored = static_cast<double>(side.log_p[row * problem.classes + klass]);
      const double reference_p = static_cast<double>(from_ordered(problem.extrema.least_p[klass]));
      const double reference_log_p =
          static_cast<double>(from_ordered(problem.extrema.greatest_log_p[klass]));
      p[k] = static_cast<float>(probability(stored, problem.classes) - reference_p);
      log_p[k] = static_cast<float>(stored - reference_log_p);
      const double of_class = reference_p * (stored - static_cast<double>(log_p_r[klass]));
      q += of_class;
      h += of_class + Factors::multiply(p[k], log_p[k]);
    }
    Factors::store(side.planes, slices, row, 0, begin, p);
    Factors::store(side.planes, slices, row, 1, begin, log_p);
    if constexpr (!kSharedPlanes<Mode>) {
      SumFactors::store(side.sum_planes, sum_slices, row, 0, begin, p);
      SumFactors::store(side.sum_planes, sum_slices, row, 1, begin, log_p);
    }
  }
  h = sum_of_row(h, row_threads);
  q = sum_of_row(q, row_threads);
  if (thread == 0) {
    side.h[row] = static_cast<float>(h);
    side.q[row] = static_cast<float>(q);
  }
}

}  // namespace
}  // namespace pairloss::cuda
