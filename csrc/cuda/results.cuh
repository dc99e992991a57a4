// The partial sums of the blocks, added in a fixed order: the rows' losses and gradients, and the
// loss and the statistics of the whole.
#pragma once

#include "cuda/closed_forms.cuh"
#include "cuda/losses.cuh"

namespace pairloss::cuda {
namespace {

constexpr int kReduceThreads = 256;

// dLoss/dz of one element, from the sums of its row and class.
template <bool kBoth, typename acc_t>
__device__ acc_t gradient_element(bool has_pair, double loss, double d, acc_t p, acc_t a,
                                  double b) {
  // What a row without a pair holds must not reach its gradient as 0 * NaN.
  if (!has_pair) return acc_t(0);
  if (!kBoth) return static_cast<acc_t>(b);
  // 0, or NaN where the row's loss is infinite or NaN: such a row has no gradient through the first
  // argument, and the partner that makes it so would otherwise get one that looks sound.
  const double poison = loss - loss;
  // A class with P = 0 has no share in the first term, and its A may be infinite.
  return static_cast<acc_t>(poison + b + kl_term(static_cast<double>(p), a - d));
}

// A row's gradient adds up to 0: `rest`, which its elements add up to, is rounding. It goes to the
// classes by their P. Where P is nearly 1, that class's element is what float does not hold of
// differences between numbers near 1, and the others', which are accurate, make it anew. On
// clusters that have converged, nothing else is left of a gradient. (The backward of log_softmax
// does the same.)
template <typename acc_t>
__device__ acc_t without_rest(acc_t element, double rest, acc_t p) {
  // P of a row without a pair may be NaN.
  if (rest == 0.0) return element;
  return static_cast<acc_t>(static_cast<double>(element) - rest * static_cast<double>(p));
}

// What earlier chunks have added up about the rows behind the first one. Null without such.
template <typename acc_t>
struct EarlierSums {
  acc_t *a = nullptr, *b = nullptr;  // (rows, K)
};

constexpr int kRowLossParts = 16;
constexpr int kRowLossThreads = kRowLossParts * kTile;

// Row losses, from those of the tiles: of the chunk's rows, or of those behind it. adds: to those
// of earlier chunks. Grid: the row tiles. Neighbouring threads have neighbouring rows, as memory
// has, and each a part of the column tiles, for it waits for them.
template <typename acc_t>
__global__ void __launch_bounds__(kRowLossThreads, 1)
    row_losses_kernel(Chunk<acc_t> chunk, bool adds, double* losses) {
  PAIRLOSS_SHARED(double, of_parts, [kRowLossParts][kTile]);
  const int row_tile = blockIdx.x, row = threadIdx.x % kTile, part = threadIdx.x / kTile;
  const int64_t local = int64_t{row_tile} * kTile + row;
  const Share tiles = share(chunk.tiles.column_tiles, part, kRowLossParts);
  double loss = -0.0;  // see has_pair()
#pragma unroll 8
  for (int tile = tiles.begin; tile < tiles.end; ++tile)
    if (is_open(chunk, row_tile, tile))
      loss += static_cast<double>(chunk.loss[tile * chunk.stride + local]);
  of_parts[part][row] = loss;
  __syncthreads();
  if (part > 0 || local >= chunk.rows) return;
  for (int other = 1; other < kRowLossParts; ++other) loss += of_parts[other][row];
  losses[local] = adds ? losses[local] + loss : loss;
}

// A block per row of the chunk. losses: of these rows; null where this kernel adds them up.
// earlier: of these rows. row_loss: null, or (rows,). grad: null, or (rows, K).
template <bool kBoth, typename acc_t, typename out_t>
__global__ void finish_kernel(Problem<acc_t> problem, Chunk<acc_t> chunk, const double* losses,
                              EarlierSums<acc_t> earlier, acc_t* row_loss, out_t* grad,
                              ClosedForms closed_forms) {
  const int64_t local = blockIdx.x, row = chunk.first + local, classes = problem.classes;
  double loss = -0.0;  // see has_pair()
  if (losses != nullptr) {
    loss = losses[local];
  } else {
    for (int tile = threadIdx.x; tile < chunk.tiles.column_tiles; tile += blockDim.x)
      if (is_open(chunk, static_cast<int>(local / kTile), tile))
        loss += static_cast<double>(chunk.loss[tile * chunk.stride + local]);
    loss = reduce_block<Sum>(loss);
  }
  const ClosedRow<acc_t> closed(problem, chunk, closed_forms, local);
  if (closed.any) loss += closed.loss() + 0.0;
  const int64_t given = given_row(problem.rows, row);
  if (row_loss != nullptr && threadIdx.x == 0) row_loss[given] = static_cast<acc_t>(loss + 0.0);
  if (grad == nullptr) return;

  const acc_t* p = problem.rows.p + row * classes;
  double d = 0.0;
  if (kBoth) {
    for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
      double sum = closed.a(k);
      if (earlier.a != nullptr) sum += earlier.a[local * classes + k];
      for (int split = 0; split < chunk.product_splits; ++split)
        sum += chunk.a[(split * chunk.stride + local) * classes + k];
      // For this thread's second pass. d is made of the rounded values too: where P = 1, A and d
      // must cancel, and both may be tens of thousands.
      const acc_t a = static_cast<acc_t>(sum);
      chunk.a[local * classes + k] = a;
      d += kl_term(static_cast<double>(p[k]), static_cast<double>(a));
    }
    d = reduce_block<Sum>(d);
  }
  double rest = 0.0;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
    double b = closed.b(k);
    if (earlier.b != nullptr) b += earlier.b[local * classes + k];
    for (int split = 0; split < chunk.product_splits; ++split)
      b += chunk.b[(split * chunk.stride + local) * classes + k];
    const acc_t a = kBoth ? chunk.a[local * classes + k] : acc_t(0);
    const acc_t element = gradient_element<kBoth>(has_pair(loss), loss, d, p[k], a, b);
    chunk.b[local * classes + k] = element;
    rest += static_cast<double>(element);
  }
  rest = reduce_block<Sum>(rest);
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) {
    const acc_t element = chunk.b[local * classes + k];
    grad[given * classes + k] = static_cast<out_t>(without_rest(element, rest, p[k]));
  }
}

// By a whole block, from `slots` partial sums of each level. loss: null, or 0-d. stats: (kStats,
// G).
template <typename acc_t>
__device__ void write_results(int level_count, bool within, const Level<acc_t>* levels,
                              const LevelSums* level_sums, int64_t slots, acc_t* loss,
                              double* stats) {
  double total = 0.0;
  for (int level = 0; level < level_count; ++level) {
    double similar = 0.0, dissimilar = 0.0;
    unsigned long long active_pairs = 0;
#pragma unroll 8  // one block waits for memory alone
    for (int64_t slot = threadIdx.x; slot < slots; slot += blockDim.x) {
      const LevelSums& some = level_sums[slot * level_count + level];
      similar += some.similar;
      dissimilar += some.dissimilar;
      active_pairs += some.active;
    }
    // Every pair of the batch stands in the sums of two rows.
    const double once = within ? 0.5 : 1.0;
    similar = once * reduce_block<Sum>(similar);
    dissimilar = once * reduce_block<Sum>(dissimilar);
    const double active = once * static_cast<double>(reduce_block<Sum>(active_pairs));
    if (threadIdx.x != 0) continue;
    const Level<acc_t> of_level = levels[level];
    const double similar_part = static_cast<double>(of_level.scale.similar) * similar;
    const double dissimilar_part = static_cast<double>(of_level.scale.dissimilar) * dissimilar;
    stats[kSimilarPairs * level_count + level] = of_level.similar_pairs;
    stats[kDissimilarPairs * level_count + level] = of_level.dissimilar_pairs;
    stats[kActiveFraction * level_count + level] =  // of both directions
        of_level.dissimilar_pairs > 0.0 ? active / (2.0 * of_level.dissimilar_pairs) : 0.0;
    stats[kSimilarPart * level_count + level] = similar_part;
    stats[kDissimilarPart * level_count + level] = dissimilar_part;
    total += similar_part + dissimilar_part;
  }
  if (loss != nullptr && threadIdx.x == 0) *loss = static_cast<acc_t>(total);
}

// One block.
template <typename acc_t>
__global__ void __launch_bounds__(kReduceThreads, 1)
    reduce_kernel(int level_count, bool within, const Level<acc_t>* levels,
                  const LevelSums* level_sums, int64_t slots, acc_t* loss, double* stats) {
  write_results(level_count, within, levels, level_sums, slots, loss, stats);
}

}  // namespace
}  // namespace pairloss::cuda
