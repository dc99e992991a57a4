// The pair KL hinge loss and its gradient: device code and the order of the launches. No framework
// header, so that the emulation in tests/cuda_emulation/ compiles all of it; tensors, checks and
// dispatch are in pair_kl_hinge.cu.
//
// With P = softmax(z), L = log P, D_ij = sum_k P_ik (L_ik - L_jk) and g_ij = +1 for similar pairs,
// -1 for dissimilar pairs with D_ij < margin, else 0 (times u_i + u_j for reduction="none" with the
// upstream gradient u):
//
//   A_i = sum_j g_ij (L_i - L_j)    d_i = P_i . A_i = sum_j g_ij D_ij
//   B_i = sum_j g_ji (P_i - P_j)
//   dLoss/dz_i = P_i * (A_i - d_i) + B_i        (gradient "second": B_i alone)
//
// Every sum is over differences of rows. The cheaper r_i L_i - (G L)_i cancels where the rows are
// nearly equal, which is how training starts.
//
// Similar pairs go the same way as dissimilar ones. Their closed form, O(N K) per class, would not
// save the pass over the pairs that the hinge needs, and costs a sort by label.
//
//   summarize_kernel     counts the valid rows
//   softmax_kernel       P and L
//   for every chunk of rows i, against all rows j:
//     pairs_kernel       D_ij and D_ji by tiles of 64 x 64; from them the rows' loss sums and
//                        one bit per pair: g != 0
//     products_kernel    A and B from the bits, by tiles of 64 rows x 16 or 64 classes
//     finish_kernel      the rows' losses and gradients
//   reduce_kernel        the loss and the statistics
//
// Work is cut into more blocks than a GPU runs at a time, in a way that depends on the sizes only.
// Every block writes partial sums of its own, and they are added in a fixed order, so the result is
// the same to the bit from run to run, whatever the number of multiprocessors. Only integers are
// added atomically.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"
#include "pair_math.h"

namespace pairloss::cuda {

// double for double, float for float and the half-precision types.
template <typename scalar_t>
using accumulator_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kTile = 64;  // rows and columns of a tile of pairs
constexpr int kMicro = 4;  // a thread holds 4 x 4 elements of its block's tile
constexpr int kStep = 16;  // classes that pairs_kernel stages at a time
constexpr int kWord = 32;  // pairs per word of bits; columns that products_kernel stages
constexpr int kPad = 4;  // keeps 16-byte alignment, and transposed stores at two-way bank conflicts
constexpr int kPairThreads = (kTile / kMicro) * (kTile / kMicro);
constexpr int kNarrowPanel = 16, kWidePanel = 64;  // classes of a block of products_kernel
constexpr int kReduceThreads = 256;

// What summarize_kernel sets, and all other kernels read or add to.
struct Summary {
  int64_t valid_rows;
  unsigned long long similar_pairs;  // ordered
  unsigned long long active_pairs;   // ordered
  int unbounded;                     // some L of a valid row is not finite
};

template <typename acc_t>
struct Batch {
  int64_t rows = 0, classes = 0;  // N, K
  int64_t ignore_index = 0;
  const int64_t* labels = nullptr;  // (N,)
  acc_t* p = nullptr;               // (N, K), 0 in ignored rows
  acc_t* log_p = nullptr;           // (N, K), log P + log K, 0 in ignored rows
  double* similar = nullptr;        // (N,) sum_j l_ij + l_ji over the row's similar partners
  double* dissimilar = nullptr;     // (N,) and over its dissimilar ones
  Summary* summary = nullptr;

  __device__ bool is_valid(int64_t label) const { return label != ignore_index; }
};

// Rows first .. first + rows of the batch, and the partial results about them. A split is the share
// of the columns j that one block walks over.
template <typename acc_t>
struct Chunk {
  int64_t first = 0, rows = 0;
  int64_t stride = 0;  // rows of the largest chunk, a multiple of kTile
  int pair_splits = 0, product_splits = 0;
  double* similar = nullptr;     // (pair_splits, stride)
  double* dissimilar = nullptr;  // (pair_splits, stride)
  // (2 ceil(N / 64), stride) words: bit b of word w of row i belongs to column 32 w + b. Null
  // without a gradient.
  uint32_t* g_ij = nullptr;
  uint32_t* g_ji = nullptr;
  acc_t* a = nullptr;  // (product_splits, stride, K)
  acc_t* b = nullptr;  // (product_splits, stride, K)
};

struct Range {
  int64_t begin, end;
};

// Part `index` of `parts` nearly equal ones.
PAIRLOSS_HOST_DEVICE Range part(int64_t count, int index, int parts) {
  return {count * index / parts, count * (index + 1) / parts};
}

PAIRLOSS_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- reductions in a fixed order ----------------------------------------------------------------

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Maximum {
  __device__ double operator()(double a, double b) const { return fmax(a, b); }
};

// Over all threads of the block, which are whole warps; every thread gets the result.
template <typename Operation, typename T>
__device__ T reduce_block(T value, Operation operation = {}) {
  PAIRLOSS_SHARED(T, of_warp, [kWarp]);
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    value = operation(value, __shfl_xor_sync(kAllLanes, value, lanes));
  __syncthreads();  // an earlier call may still be reading
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = of_warp[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x / kWarp); ++warp)
    value = operation(value, static_cast<T>(of_warp[warp]));
  return value;
}

// ---- rows ---------------------------------------------------------------------------------------

// One block.
template <typename acc_t>
__global__ void __launch_bounds__(kReduceThreads) summarize_kernel(Batch<acc_t> batch) {
  int64_t valid = 0;
  for (int64_t row = threadIdx.x; row < batch.rows; row += blockDim.x)
    valid += batch.is_valid(batch.labels[row]);
  valid = reduce_block<Sum>(valid);
  if (threadIdx.x == 0) *batch.summary = {valid, 0, 0, 0};
}

// A block per row. All in double: it is O(N K) work beside O(N^2 K), and it takes the rounding of
// log-sum-exp, which would be common to a whole row, out of the differences of rows. L is stored as
// log P + log K: the constant cancels in every difference, and where P is nearly uniform what is
// stored is small and keeps its digits.
template <typename scalar_t, typename acc_t>
__global__ void softmax_kernel(Batch<acc_t> batch, const scalar_t* logits) {
  const int64_t row = blockIdx.x, classes = batch.classes;
  const scalar_t* z = logits + row * classes;
  acc_t* p = batch.p + row * classes;
  acc_t* log_p = batch.log_p + row * classes;

  // What an ignored row holds must reach nothing, not even as 0 * NaN.
  if (!batch.is_valid(batch.labels[row])) {
    for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) p[k] = log_p[k] = acc_t(0);
    return;
  }

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
    bounded &= is_finite(stored);
  }
  if (!bounded) atomicOr(&batch.summary->unbounded, 1);
}

// ---- pairs --------------------------------------------------------------------------------------

// tile[k][r] = matrix[first + r][k0 + k], 0 outside the matrix.
template <typename Tile, typename acc_t>
__device__ void stage_transposed(Tile& tile, const acc_t* matrix, const Batch<acc_t>& batch,
                                 int64_t first, int64_t k0) {
  for (int e = threadIdx.x; e < kTile * kStep; e += kPairThreads) {
    const int k = e % kStep, r = e / kStep;
    const bool inside = first + r < batch.rows && k0 + k < batch.classes;
    tile[k][r] = inside ? matrix[(first + r) * batch.classes + k0 + k] : acc_t(0);
  }
}

// Rows outside the batch count as ignored.
template <typename Labels, typename acc_t>
__device__ void stage_labels(Labels& staged, const Batch<acc_t>& batch, int64_t first) {
  for (int r = threadIdx.x; r < kTile; r += kPairThreads)
    staged[r] = first + r < batch.rows ? batch.labels[first + r] : batch.ignore_index;
}

// kUnbounded: some L is -inf or NaN, and 0 * inf must be 0. The select is paid for only where it is
// needed.
template <bool kUnbounded, typename acc_t>
__device__ __forceinline__ acc_t add_kl_term(acc_t divergence, acc_t p, acc_t log_ratio) {
  return kUnbounded && p == acc_t(0) ? divergence : fma(p, log_ratio, divergence);
}

// Adds `classes` staged classes to the thread's 4 x 4 divergences. The two directions are the same
// arithmetic with the roles exchanged (and spelt fma, not left to contraction), so D_ij of the pair
// (i, j) and D_ji of the pair (j, i), which another block computes, agree to the bit, and so do the
// bits g made of them.
template <bool kUnbounded, typename Tile, typename acc_t>
__device__ __forceinline__ void add_classes(int classes, const Tile& p_i, const Tile& log_p_i,
                                            const Tile& p_j, const Tile& log_p_j, int i0, int j0,
                                            acc_t (&d_ij)[kMicro][kMicro],
                                            acc_t (&d_ji)[kMicro][kMicro]) {
  // The sums of a step are added apart: one chain over K = 4096 was off by 1.0e-6 where this is by
  // 0.4e-6 (D = 2, float).
  acc_t step_ij[kMicro][kMicro] = {}, step_ji[kMicro][kMicro] = {};
  constexpr int kUnroll = sizeof(acc_t) == sizeof(float) ? 2 : 1;  // double is short of registers
#pragma unroll kUnroll
  for (int k = 0; k < classes; ++k) {
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
      d_ij[r][c] += step_ij[r][c];
      d_ji[r][c] += step_ji[r][c];
    }
  }
}

// Grid (pair_splits, row tiles of the chunk). Writes the chunk's similar, dissimilar, g_ij and
// g_ji, and adds to the summary's counts.
template <typename acc_t>
__global__ void __launch_bounds__(kPairThreads)
    pairs_kernel(Batch<acc_t> batch, Chunk<acc_t> chunk, acc_t margin) {
  PAIRLOSS_SHARED(acc_t, p_i, [kStep][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, log_p_i, [kStep][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, p_j, [kStep][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, log_p_j, [kStep][kTile + kPad]);
  PAIRLOSS_SHARED(int64_t, labels_i, [kTile]);
  PAIRLOSS_SHARED(int64_t, labels_j, [kTile]);

  constexpr int kLanes = kTile / kMicro;  // threads across a tile: half a warp
  const int x = threadIdx.x % kLanes, y = threadIdx.x / kLanes;
  const int local = blockIdx.y * kTile;  // in the chunk
  const int64_t first = chunk.first + local;
  const Range tiles = part(ceil_div(batch.rows, kTile), blockIdx.x, chunk.pair_splits);
  const bool unbounded = batch.summary->unbounded != 0;

  // Sums over the thread's columns. What one tile adds to a row is a sum of 8 terms in acc_t; only
  // from there on is it double, of which consumer GPUs have little.
  double similar_sum[kMicro] = {}, dissimilar_sum[kMicro] = {};
  unsigned similar_count = 0, active_count = 0;

  stage_labels(labels_i, batch, first);
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const int64_t column = tile * kTile;
    acc_t d_ij[kMicro][kMicro] = {}, d_ji[kMicro][kMicro] = {};
    for (int64_t k0 = 0; k0 < batch.classes; k0 += kStep) {
      __syncthreads();  // the step before has been read, and so have the labels of the tile before
      if (k0 == 0) stage_labels(labels_j, batch, column);
      stage_transposed(p_i, batch.p, batch, first, k0);
      stage_transposed(log_p_i, batch.log_p, batch, first, k0);
      stage_transposed(p_j, batch.p, batch, column, k0);
      stage_transposed(log_p_j, batch.log_p, batch, column, k0);
      __syncthreads();
      const int classes = batch.classes - k0 < kStep ? static_cast<int>(batch.classes - k0) : kStep;
      if (unbounded)
        add_classes<true>(classes, p_i, log_p_i, p_j, log_p_j, y * kMicro, x * kMicro, d_ij, d_ji);
      else
        add_classes<false>(classes, p_i, log_p_i, p_j, log_p_j, y * kMicro, x * kMicro, d_ij, d_ji);
    }

    int64_t column_labels[kMicro];
#pragma unroll
    for (int c = 0; c < kMicro; ++c) column_labels[c] = labels_j[x * kMicro + c];
#pragma unroll
    for (int r = 0; r < kMicro; ++r) {
      const int row = y * kMicro + r;
      const int64_t row_label = labels_i[row];
      acc_t similar_here = 0, dissimilar_here = 0;
      uint32_t bits_ij = 0, bits_ji = 0;
#pragma unroll
      for (int c = 0; c < kMicro; ++c) {
        const bool valid = batch.is_valid(row_label) && batch.is_valid(column_labels[c]) &&
                           first + row != column + x * kMicro + c;
        if (!valid) continue;
        const bool similar = row_label == column_labels[c];
        const bool active_ij = !similar && is_active(d_ij[r][c], margin);
        const bool active_ji = !similar && is_active(d_ji[r][c], margin);
        const acc_t loss =
            pair_loss(d_ij[r][c], similar, margin) + pair_loss(d_ji[r][c], similar, margin);
        (similar ? similar_here : dissimilar_here) += loss;
        similar_count += similar;
        active_count += active_ij;
        bits_ij |= static_cast<uint32_t>(similar || active_ij) << c;
        bits_ji |= static_cast<uint32_t>(similar || active_ji) << c;
      }
      similar_sum[r] += static_cast<double>(similar_here);
      dissimilar_sum[r] += static_cast<double>(dissimilar_here);

      if (chunk.g_ij != nullptr) {
        // Eight threads hold the nibbles of a word.
        constexpr int kNibbles = kWord / kMicro;
        bits_ij <<= kMicro * (x % kNibbles);
        bits_ji <<= kMicro * (x % kNibbles);
        for (int lanes = kNibbles / 2; lanes > 0; lanes /= 2) {
          bits_ij |= __shfl_xor_sync(kAllLanes, bits_ij, lanes);
          bits_ji |= __shfl_xor_sync(kAllLanes, bits_ji, lanes);
        }
        if (x % kNibbles == 0) {
          const int64_t word = (2 * tile + x / kNibbles) * chunk.stride + local + row;
          chunk.g_ij[word] = bits_ij;
          chunk.g_ji[word] = bits_ji;
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kMicro; ++r) {
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
      similar_sum[r] += __shfl_xor_sync(kAllLanes, similar_sum[r], lanes);
      dissimilar_sum[r] += __shfl_xor_sync(kAllLanes, dissimilar_sum[r], lanes);
    }
    if (x == 0) {
      const int64_t row = blockIdx.x * chunk.stride + local + y * kMicro + r;
      chunk.similar[row] = similar_sum[r];
      chunk.dissimilar[row] = dissimilar_sum[r];
    }
  }
  similar_count = reduce_block<Sum>(similar_count);
  active_count = reduce_block<Sum>(active_count);
  if (threadIdx.x == 0) {
    atomicAdd(&batch.summary->similar_pairs, static_cast<unsigned long long>(similar_count));
    atomicAdd(&batch.summary->active_pairs, static_cast<unsigned long long>(active_count));
  }
}

// ---- gradient products --------------------------------------------------------------------------

PAIRLOSS_HOST_DEVICE constexpr int product_threads(int panel) {
  return (kTile / kMicro) * (panel / kMicro);
}

// tile[j][k] = matrix[first + j][k0 + k], 0 outside the matrix.
template <int kPanel, typename Tile, typename acc_t>
__device__ void stage(Tile& tile, const acc_t* matrix, const Batch<acc_t>& batch, int64_t first,
                      int64_t k0) {
  for (int e = threadIdx.x; e < kWord * kPanel; e += product_threads(kPanel)) {
    const int k = e % kPanel, j = e / kPanel;
    const bool inside = first + j < batch.rows && k0 + k < batch.classes;
    tile[j][k] = inside ? matrix[(first + j) * batch.classes + k0 + k] : acc_t(0);
  }
}

// A and B of the thread's 4 rows x 4 classes. kUnbounded: in a pair of weight 0 the difference may
// be infinite or NaN.
template <bool kBoth, bool kUnbounded, typename Weights, typename Tile, typename acc_t>
__device__ __forceinline__ void add_columns(const Weights& w_ij, const Weights& w_ji,
                                            const Tile& p_j, const Tile& log_p_j, int i0, int k0,
                                            const acc_t (&p)[kMicro][kMicro],
                                            const acc_t (&log_p)[kMicro][kMicro],
                                            acc_t (&a)[kMicro][kMicro],
                                            acc_t (&b)[kMicro][kMicro]) {
#pragma unroll 2
  for (int j = 0; j < kWord; ++j) {
    acc_t p_column[kMicro], log_p_column[kMicro];
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      p_column[c] = p_j[j][k0 + c];
      if (kBoth) log_p_column[c] = log_p_j[j][k0 + c];
    }
#pragma unroll
    for (int r = 0; r < kMicro; ++r) {
      const acc_t weight_ij = kBoth ? static_cast<acc_t>(w_ij[j][i0 + r]) : acc_t(0);
      const acc_t weight_ji = w_ji[j][i0 + r];
#pragma unroll
      for (int c = 0; c < kMicro; ++c) {
        if (kBoth && !(kUnbounded && weight_ij == acc_t(0)))
          a[r][c] += weight_ij * (log_p[r][c] - log_p_column[c]);
        b[r][c] += weight_ji * (p[r][c] - p_column[c]);
      }
    }
  }
}

// Grid (panels, product_splits, row tiles of the chunk). Writes the chunk's a (kBoth) and b.
// upstream: null, or u (N,).
//
// The number of blocks on a multiprocessor sets the registers: 128 a thread for the wide panel, 168
// for the narrow one (255 with double). Left to itself, ptxas aims at fewer there, and spills.
template <int kPanel, bool kBoth, typename acc_t>
__global__ void __launch_bounds__(product_threads(kPanel),
                                  kPanel == kNarrowPanel ? 24 / sizeof(acc_t) : 2)
    products_kernel(Batch<acc_t> batch, Chunk<acc_t> chunk, const acc_t* upstream) {
  // Weights instead of bits: expanded once, used for a whole panel.
  PAIRLOSS_SHARED(acc_t, w_ij, [kWord][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, w_ji, [kWord][kTile + kPad]);
  PAIRLOSS_SHARED(acc_t, p_j, [kWord][kPanel]);
  PAIRLOSS_SHARED(acc_t, log_p_j, [kWord][kPanel]);

  constexpr int kLanes = kPanel / kMicro;
  const int x = threadIdx.x % kLanes, y = threadIdx.x / kLanes;
  const int local = blockIdx.z * kTile;  // in the chunk
  const int64_t first = chunk.first + local, k0 = static_cast<int64_t>(blockIdx.x) * kPanel;
  const Range words = part(ceil_div(batch.rows, kWord), blockIdx.y, chunk.product_splits);
  const bool unbounded = batch.summary->unbounded != 0;

  acc_t p[kMicro][kMicro], log_p[kMicro][kMicro], a[kMicro][kMicro] = {}, b[kMicro][kMicro] = {};
#pragma unroll
  for (int r = 0; r < kMicro; ++r) {
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      const int64_t row = first + y * kMicro + r, k = k0 + x * kMicro + c;
      const bool inside = row < batch.rows && k < batch.classes;
      p[r][c] = inside ? batch.p[row * batch.classes + k] : acc_t(0);
      log_p[r][c] = inside ? batch.log_p[row * batch.classes + k] : acc_t(0);
    }
  }

  // The row whose weights the thread expands, together with the other kRowShare - 1 of its kind.
  constexpr int kRowShare = product_threads(kPanel) / kTile;
  const int expanded = threadIdx.x % kTile;
  const bool exists = first + expanded < batch.rows;
  const int64_t label = exists ? batch.labels[first + expanded] : batch.ignore_index;
  const acc_t u = exists && upstream != nullptr ? upstream[first + expanded] : acc_t(0);

  for (int64_t word = words.begin; word < words.end; ++word) {
    const int64_t column = word * kWord;
    const uint32_t bits_ij = kBoth ? chunk.g_ij[word * chunk.stride + local + expanded] : 0;
    const uint32_t bits_ji = chunk.g_ji[word * chunk.stride + local + expanded];
    // Also the barrier behind which the staged columns may be replaced.
    if (!__syncthreads_or((bits_ij | bits_ji) != 0)) continue;

#pragma unroll 4  // of 32 in the narrow panel; all of them cost registers
    for (int j = threadIdx.x / kTile; j < kWord; j += kRowShare) {
      const bool on_ij = (bits_ij >> j) & 1, on_ji = (bits_ji >> j) & 1;
      acc_t weight = 0;
      if (on_ij || on_ji) {  // so the column exists
        weight = upstream != nullptr ? u + upstream[column + j] : acc_t(1);
        if (label != batch.labels[column + j]) weight = -weight;
      }
      if (kBoth) w_ij[j][expanded] = on_ij ? weight : acc_t(0);
      w_ji[j][expanded] = on_ji ? weight : acc_t(0);
    }
    stage<kPanel>(p_j, batch.p, batch, column, k0);
    if (kBoth) stage<kPanel>(log_p_j, batch.log_p, batch, column, k0);
    __syncthreads();

    if (kBoth && unbounded)
      add_columns<kBoth, true>(w_ij, w_ji, p_j, log_p_j, y * kMicro, x * kMicro, p, log_p, a, b);
    else
      add_columns<kBoth, false>(w_ij, w_ji, p_j, log_p_j, y * kMicro, x * kMicro, p, log_p, a, b);
  }

#pragma unroll
  for (int r = 0; r < kMicro; ++r) {
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      const int64_t row = local + y * kMicro + r, k = k0 + x * kMicro + c;
      if (k >= batch.classes) continue;
      const int64_t element = (blockIdx.y * chunk.stride + row) * batch.classes + k;
      if (kBoth) chunk.a[element] = a[r][c];
      chunk.b[element] = b[r][c];
    }
  }
}

// ---- results ------------------------------------------------------------------------------------

// A block per row of the chunk. row_loss: null, or (N,). grad: null, or (N, K).
template <bool kBoth, typename acc_t, typename out_t>
__global__ void finish_kernel(Batch<acc_t> batch, Chunk<acc_t> chunk, Reduction reduction,
                              acc_t* row_loss, out_t* grad) {
  const int64_t local = blockIdx.x, row = chunk.first + local, classes = batch.classes;
  double similar = 0.0, dissimilar = 0.0;
  for (int split = threadIdx.x; split < chunk.pair_splits; split += blockDim.x) {
    similar += chunk.similar[split * chunk.stride + local];
    dissimilar += chunk.dissimilar[split * chunk.stride + local];
  }
  similar = reduce_block<Sum>(similar);
  dissimilar = reduce_block<Sum>(dissimilar);
  const double loss = similar + dissimilar;
  if (threadIdx.x == 0) {
    batch.similar[row] = similar;
    batch.dissimilar[row] = dissimilar;
    if (row_loss != nullptr) row_loss[row] = static_cast<acc_t>(loss);
  }
  if (grad == nullptr) return;

  const double scale = reduction_scale(reduction, batch.summary->valid_rows);
  if (!batch.is_valid(batch.labels[row]) || scale == 0.0) {
    for (int64_t k = threadIdx.x; k < classes; k += blockDim.x)
      grad[row * classes + k] = static_cast<out_t>(0.0f);
    return;
  }

  // A class with P = 0 has no share in the first term, and its A may be infinite.
  double d = 0.0;
  if (kBoth) {
    for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
      double sum = 0.0;
      for (int split = 0; split < chunk.product_splits; ++split)
        sum += chunk.a[(split * chunk.stride + local) * classes + k];
      // For this thread's second pass. d is made of the rounded values too: where P = 1, A and d
      // must cancel, and both may be tens of thousands.
      const acc_t a = static_cast<acc_t>(sum);
      chunk.a[local * classes + k] = a;
      d += kl_term(static_cast<double>(batch.p[row * classes + k]), static_cast<double>(a));
    }
    d = reduce_block<Sum>(d);
  }
  // 0, or NaN where the row's loss is infinite or NaN: such a row has no gradient through the first
  // argument, and the partner that makes it so would otherwise get one that looks sound.
  const double poison = kBoth ? loss - loss : 0.0;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
    double value = poison;
    for (int split = 0; split < chunk.product_splits; ++split)
      value += chunk.b[(split * chunk.stride + local) * classes + k];
    if (kBoth)
      value += kl_term(static_cast<double>(batch.p[row * classes + k]),
                       chunk.a[local * classes + k] - d);
    grad[row * classes + k] = static_cast<out_t>(static_cast<acc_t>(scale * value));
  }
}

// One block. loss: null, or 0-d. stats: kStats values.
template <typename acc_t>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(Batch<acc_t> batch, Reduction reduction, acc_t* loss, double* stats) {
  double similar = 0.0, dissimilar = 0.0;
  for (int64_t row = threadIdx.x; row < batch.rows; row += blockDim.x) {
    similar += batch.similar[row];
    dissimilar += batch.dissimilar[row];
  }
  similar = reduce_block<Sum>(similar);
  dissimilar = reduce_block<Sum>(dissimilar);
  if (threadIdx.x != 0) return;

  const Summary summary = *batch.summary;
  // Every pair stands in the sums of two rows.
  const double scale = 0.5 * reduction_scale(reduction, summary.valid_rows);
  const double similar_pairs = 0.5 * static_cast<double>(summary.similar_pairs);
  const double dissimilar_pairs =
      static_cast<double>(unordered_pairs(summary.valid_rows)) - similar_pairs;
  stats[kSimilarPairs] = similar_pairs;
  stats[kDissimilarPairs] = dissimilar_pairs;
  stats[kActiveFraction] = dissimilar_pairs > 0.0
                               ? 0.5 * static_cast<double>(summary.active_pairs) / dissimilar_pairs
                               : 0.0;
  stats[kSimilarPart] = scale * similar;
  stats[kDissimilarPart] = scale * dissimilar;
  if (loss != nullptr) *loss = static_cast<acc_t>(scale * (similar + dissimilar));
}

// ---- the launches -------------------------------------------------------------------------------

// How the work is cut. Depends on the sizes alone, never on the GPU: so do the bits of the result.
struct Plan {
  int64_t rows, classes;
  int64_t chunk_rows = 0;
  int pair_splits = 0, product_splits = 0;
  int panel = 0, panels = 0;
};

// Enough blocks to fill any GPU a few times over, few enough to keep the partial sums of the
// products near 16 MB.
constexpr int64_t kPairBlocks = 512;
constexpr int64_t kProductThreads = 512 * 256;

inline int64_t default_chunk_rows(int64_t rows, int64_t classes) {
  constexpr int64_t kBits = int64_t{1} << 26;      // of g_ij, and of g_ji: 8 MB
  constexpr int64_t kElements = int64_t{1} << 22;  // of a, and of b, per split
  return std::max<int64_t>(std::min(kBits / rows, kElements / classes) / kTile * kTile, kTile);
}

// chunk_rows: a multiple of kTile.
template <typename acc_t>
Plan make_plan(int64_t rows, int64_t classes, int64_t chunk_rows) {
  Plan plan{rows, classes};
  plan.chunk_rows = std::min(chunk_rows, ceil_div(rows, kTile) * kTile);
  // A wide panel shares the expanded weights among more classes, a narrow one wastes fewer threads
  // on classes that do not exist. float64 is for tests: one instance will do, and a wide one would
  // not fit into shared memory.
  plan.panel =
      std::is_same_v<acc_t, double> || classes <= 3 * kNarrowPanel ? kNarrowPanel : kWidePanel;
  plan.panels = static_cast<int>(ceil_div(classes, plan.panel));
  const int64_t row_tiles = ceil_div(plan.chunk_rows, kTile);
  plan.pair_splits =
      static_cast<int>(std::min(ceil_div(kPairBlocks, row_tiles), ceil_div(rows, kTile)));
  plan.product_splits = static_cast<int>(
      std::min(ceil_div(kProductThreads, product_threads(plan.panel) * plan.panels * row_tiles),
               ceil_div(rows, kWord)));
  return plan;
}

// Hands out consecutive pieces of one allocation; without one, only measures.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    constexpr int64_t kAlignment = 256;
    const int64_t begin = bytes_, size = count * static_cast<int64_t>(sizeof(T));
    bytes_ += ceil_div(size + kWorkspaceGuardBytes, kAlignment) * kAlignment;
    if (base_ == nullptr) return nullptr;
    guard_workspace(base_ + begin + size, bytes_ - begin - size);
    return reinterpret_cast<T*>(base_ + begin);
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// What run() works on. All pointers are to device memory, contiguous.
template <typename scalar_t, typename out_t>
struct Arguments {
  using acc_t = accumulator_t<scalar_t>;
  const scalar_t* logits;  // (N, K)
  const int64_t* labels;   // (N,)
  int64_t ignore_index;
  double margin;
  Gradient gradient;
  Reduction reduction;
  const acc_t* upstream;  // null, or (N,): the upstream gradient of reduction none
  acc_t* loss;            // (N,) for reduction none, else 0-d; null in the backward
  double* stats;          // (kStats,); null with loss
  out_t* grad;            // null, or (N, K)
};

template <typename acc_t>
void carve(Workspace& workspace, const Plan& plan, bool both, bool with_grad, Batch<acc_t>& batch,
           Chunk<acc_t>& chunk) {
  const int64_t elements = plan.rows * plan.classes;
  batch.p = workspace.take<acc_t>(elements);
  batch.log_p = workspace.take<acc_t>(elements);
  batch.similar = workspace.take<double>(plan.rows);
  batch.dissimilar = workspace.take<double>(plan.rows);
  batch.summary = workspace.take<Summary>(1);
  chunk.similar = workspace.take<double>(plan.pair_splits * plan.chunk_rows);
  chunk.dissimilar = workspace.take<double>(plan.pair_splits * plan.chunk_rows);
  if (!with_grad) return;
  const int64_t words = 2 * ceil_div(plan.rows, kTile) * plan.chunk_rows;
  const int64_t partials = plan.product_splits * plan.chunk_rows * plan.classes;
  chunk.g_ij = workspace.take<uint32_t>(words);
  chunk.g_ji = workspace.take<uint32_t>(words);
  if (both) chunk.a = workspace.take<acc_t>(partials);
  chunk.b = workspace.take<acc_t>(partials);
}

template <typename acc_t>
int64_t workspace_bytes(const Plan& plan, Gradient gradient, bool with_grad) {
  Batch<acc_t> batch;
  Chunk<acc_t> chunk;
  Workspace workspace(nullptr);
  carve(workspace, plan, gradient == Gradient::both, with_grad, batch, chunk);
  return workspace.bytes();
}

template <bool kBoth, typename acc_t>
void launch_products(const Plan& plan, const Batch<acc_t>& batch, const Chunk<acc_t>& chunk,
                     const acc_t* upstream, cudaStream_t stream) {
  const dim3 grid(plan.panels, plan.product_splits,
                  static_cast<unsigned>(ceil_div(chunk.rows, kTile)));
  if constexpr (std::is_same_v<acc_t, float>) {
    if (plan.panel == kWidePanel) {
      launch(products_kernel<kWidePanel, kBoth, acc_t>, grid, product_threads(kWidePanel), stream,
             batch, chunk, upstream);
      return;
    }
  }
  launch(products_kernel<kNarrowPanel, kBoth, acc_t>, grid, product_threads(kNarrowPanel), stream,
         batch, chunk, upstream);
}

template <bool kBoth, typename scalar_t, typename out_t>
void run(const Arguments<scalar_t, out_t>& arguments, const Plan& plan, void* allocation,
         cudaStream_t stream) {
  using acc_t = accumulator_t<scalar_t>;
  const bool with_grad = arguments.grad != nullptr;
  Batch<acc_t> batch{plan.rows, plan.classes, arguments.ignore_index, arguments.labels};
  Chunk<acc_t> chunk{0, 0, plan.chunk_rows, plan.pair_splits, plan.product_splits};
  Workspace workspace(allocation);
  carve(workspace, plan, kBoth, with_grad, batch, chunk);

  // Four classes per thread keep short rows to a warp.
  const int row_threads =
      static_cast<int>(std::clamp<int64_t>(ceil_div(plan.classes, 4 * 32) * 32, 32, 256));
  acc_t* row_loss = arguments.reduction == Reduction::none ? arguments.loss : nullptr;
  acc_t* total_loss = arguments.reduction == Reduction::none ? nullptr : arguments.loss;

  launch(summarize_kernel<acc_t>, dim3(1), kReduceThreads, stream, batch);
  launch(softmax_kernel<scalar_t, acc_t>, dim3(static_cast<unsigned>(plan.rows)), row_threads,
         stream, batch, arguments.logits);
  for (chunk.first = 0; chunk.first < plan.rows; chunk.first += plan.chunk_rows) {
    chunk.rows = std::min(plan.chunk_rows, plan.rows - chunk.first);
    const unsigned row_tiles = static_cast<unsigned>(ceil_div(chunk.rows, kTile));
    launch(pairs_kernel<acc_t>, dim3(plan.pair_splits, row_tiles), kPairThreads, stream, batch,
           chunk, static_cast<acc_t>(arguments.margin));
    if (with_grad) launch_products<kBoth>(plan, batch, chunk, arguments.upstream, stream);
    launch(finish_kernel<kBoth, acc_t, out_t>, dim3(static_cast<unsigned>(chunk.rows)), row_threads,
           stream, batch, chunk, arguments.reduction, row_loss, arguments.grad);
  }
  if (arguments.stats != nullptr)
    launch(reduce_kernel<acc_t>, dim3(1), kReduceThreads, stream, batch, arguments.reduction,
           total_loss, arguments.stats);
}

}  // namespace

// N >= 1, K >= 1. allocation: workspace_bytes(...) bytes. Everything is queued on the stream.
template <typename scalar_t, typename out_t>
void run_pair_kl_hinge(const Arguments<scalar_t, out_t>& arguments, const Plan& plan,
                       void* allocation, cudaStream_t stream) {
  if (arguments.gradient == Gradient::both)
    run<true>(arguments, plan, allocation, stream);
  else
    run<false>(arguments, plan, allocation, stream);
}

}  // namespace pairloss::cuda
