// What the pairs are, of which kind, and what each weighs: the part that all kernels share.
//
// A problem has rows i and columns j. Both are the batch; or the rows are the batch and the columns
// a reference set; or the other way round, for the gradient of the reference set.
#pragma once

#include <math.h>

#include <cstdint>
#include <type_traits>

#include "cuda/mma.cuh"
#include "pair_math.h"

namespace pairloss::cuda {

namespace {

struct Range {
  int64_t begin, end;
};

// Part `index` of `parts` nearly equal ones.
PAIRLOSS_HOST_DEVICE Range part(int64_t count, int64_t index, int64_t parts) {
  return {count * index / parts, count * (index + 1) / parts};
}

PAIRLOSS_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int kTile = 64;  // rows and columns of a tile of pairs
constexpr int kMicro = 4;  // a thread holds 4 x 4 elements of its block's tile

// The labels in one level of the rows of a tile, see certificates.cuh. At first, none.
struct LabelSet {
  uint32_t least = ~0u, greatest = 0;  // hash
  uint64_t mask = 0;                   // a bit for some hashes each
  bool full = false;  // every row that takes part in any level does so in this one,
  bool one = false;   // and all with the same label,
  int64_t label = 0;  // this one
};

// Of the rows of a tile that take part: their sum of weights w, of w times the upstream gradient,
// and of w times P . log_p.
struct RowSums {
  int count;
  double weight, upstream, entropy;
};

// Of one class of these rows: the sums of log_p and P, times the weights and times the upstreams.
struct alignas(16) TileSums {
  double of[4] = {};

  PAIRLOSS_HOST_DEVICE double log_p() const { return of[0]; }
  PAIRLOSS_HOST_DEVICE double p() const { return of[1]; }
  PAIRLOSS_HOST_DEVICE double upstream_log_p() const { return of[2]; }
  PAIRLOSS_HOST_DEVICE double upstream_p() const { return of[3]; }

  PAIRLOSS_HOST_DEVICE void add(double weight, double upstream, double log_p, double p) {
    of[0] += weight * log_p;
    of[1] += weight * p;
    of[2] += upstream * log_p;
    of[3] += upstream * p;
  }
};

// Whether some row of a tile takes part, and is unbounded.
enum class TileKind : int { empty, bounded, unbounded };

// By tiles of rows, see certificates.cuh; null without certificates.
template <typename acc_t>
struct TileSummaries {
  acc_t *least = nullptr, *greatest = nullptr;  // (row tiles, K) of log_p
  LabelSet* labels = nullptr;                   // (row tiles, G)
  TileKind* kind = nullptr;                     // (row tiles,)
  RowSums* row_sums = nullptr;                  // (row tiles,)
  TileSums* sums = nullptr;                     // (row tiles, K)
};

// The rows of the batch, or those of the reference set.
template <typename acc_t>
struct Side {
  int64_t rows = 0;
  const int64_t* labels = nullptr;  // (rows, G); null with a similarity matrix
  const acc_t* weights = nullptr;   // null: all 1; else (rows,)
  const acc_t* upstream = nullptr;  // null: none; else (rows,), see gradient_weight()
  acc_t* p = nullptr;               // (rows, K)
  acc_t* log_p = nullptr;           // (rows, K), log P + log K
  int* unbounded = nullptr;         // (rows,), some log_p of the row is not below kBounded

  // For the tensor cores, see planes.cuh; null without them.
  Octet* planes = nullptr;           // (row tiles, slices, kBlockOctets), for the divergences,
  Octet* sum_planes = nullptr;       // and for the gradient's sums; may be the same
  float *h = nullptr, *q = nullptr;  // (rows to whole tiles,)
  int* tile_unbounded = nullptr;     // (row tiles,), some row that takes part is unbounded

  // (rows,), the row of the caller that stands at each place, see order.cuh; null: the same one
  const int* given_row = nullptr;
  TileSummaries<acc_t> summaries = {};
};

// Far below what bf16 holds, and far beyond what matters.
constexpr float kBounded = 0x1p100f;

// Of each class over all rows, in the order of to_ordered(); null without tensor cores.
struct Extrema {
  int *least_p = nullptr, *greatest_log_p = nullptr;  // (K,)
  int* some_unbounded = nullptr;                      // 0-d, the or of all tile_unbounded
  unsigned long long* first_row = nullptr;  // 0-d, of the batch, then of the reference set
};

// The loss of a pair is scale.similar * D or scale.dissimilar * max(margin - D, 0), summed over the
// levels, times the pair's weight.
template <typename acc_t>
struct Scale {
  acc_t similar, dissimilar;
};

// One level of labels: the numbers of its unordered pairs, and what they make of the weights.
template <typename acc_t>
struct Level {
  double similar_pairs, dissimilar_pairs;
  Scale<acc_t> scale;
};

// By value to the kernels.
template <typename acc_t>
struct Problem {
  Side<acc_t> rows, columns;
  bool within = true;  // both sides are the batch
  int64_t classes = 0;
  int level_count = 1;
  int64_t ignore_index = 0;
  const int8_t* similarity = nullptr;    // (N, N) in {1, 0, -1}, or null
  const Level<acc_t>* levels = nullptr;  // (G,)
  Extrema extrema;
  acc_t margin = 0;

  // Rows that do not exist are ignored; with a similarity matrix there are no labels to look at.
  __device__ int64_t label(const Side<acc_t>& side, int64_t row, int level) const {
    return side.labels != nullptr && row < side.rows ? side.labels[row * level_count + level]
                                                     : ignore_index;
  }

  // The kind of the ordered pair (i, j), and that of (j, i): 1 similar, -1 dissimilar, 0 takes no
  // part. They differ where a similarity matrix is not symmetric.
  __device__ void kinds(int64_t i, int64_t j, int64_t row_label, int64_t column_label, int& kind_ij,
                        int& kind_ji) const {
    if (similarity != nullptr)
      kinds_of_matrix(i, j, kind_ij, kind_ji);
    else
      kind_ij = kind_ji = kind_of_labels(i, j, row_label, column_label);
  }

 private:
  __device__ void kinds_of_matrix(int64_t i, int64_t j, int& kind_ij, int& kind_ji) const {
    kind_ij = kind_ji = 0;
    const int64_t count = rows.rows;
    if (i == j || i >= count || j >= count) return;
    kind_ij = similarity[i * count + j];
    kind_ji = similarity[j * count + i];
  }

  __device__ int kind_of_labels(int64_t i, int64_t j, int64_t row_label,
                                int64_t column_label) const {
    if (within && i == j) return 0;
    if (row_label == ignore_index || column_label == ignore_index) return 0;
    return row_label == column_label ? 1 : -1;
  }
};

template <typename acc_t>
__device__ acc_t value_or(const acc_t* values, const Side<acc_t>& side, int64_t row, acc_t other) {
  return values != nullptr && row < side.rows ? values[row] : other;
}

// P in double, from what Side keeps.
__device__ inline double probability(double log_p, int64_t classes) {
  return exp(log_p) / static_cast<double>(classes);
}

template <typename acc_t>
__device__ int64_t given_row(const Side<acc_t>& side, int64_t row) {
  return side.given_row != nullptr ? side.given_row[row] : row;
}

template <typename acc_t>
__device__ int is_unbounded(const Side<acc_t>& side, int64_t row) {
  return row < side.rows ? side.unbounded[row] : 0;
}

// What the gradient of a pair's divergences is multiplied by: w_i w_j, and with reduction none the
// upstream gradients of the row losses that the pair stands in: both rows' in the batch, the
// batch's one with a reference set.
template <typename acc_t>
__device__ acc_t gradient_weight(const Problem<acc_t>& problem, acc_t row_weight,
                                 acc_t row_upstream, int64_t column) {
  const Side<acc_t>&rows = problem.rows, &columns = problem.columns;
  const acc_t weight = row_weight * value_or(columns.weights, columns, column, acc_t(1));
  if (rows.upstream == nullptr && columns.upstream == nullptr) return weight;
  return weight * (row_upstream + value_or(columns.upstream, columns, column, acc_t(0)));
}

// ---- one ordered pair in one level --------------------------------------------------------------

// What the gradient needs to know of it.
constexpr unsigned kSimilarMark = 1, kActiveMark = 2;
constexpr int kMarkBits = 2;

// Adds its loss to one of the sums, and returns its mark.
template <typename acc_t>
__device__ __forceinline__ unsigned add_pair(int kind, acc_t divergence, acc_t margin, acc_t weight,
                                             acc_t& similar, acc_t& dissimilar, unsigned& active) {
  if (kind == 0) return 0;
  const acc_t loss = weight * pair_loss(divergence, kind > 0, margin);
  if (kind > 0) {
    similar += loss;
    return kSimilarMark;
  }
  dissimilar += loss;
  if (!is_active(divergence, margin)) return 0;
  ++active;
  return kActiveMark;
}

// dLoss/dD, but for the pair's weight.
template <typename acc_t>
__device__ __forceinline__ acc_t coefficient(unsigned mark, const Scale<acc_t>& scale) {
  return mark & kSimilarMark ? scale.similar : mark & kActiveMark ? -scale.dissimilar : acc_t(0);
}

// 0 log 0 = 0: kUnbounded says that some L may be -inf or NaN, and 0 * inf must be 0. The select is
// paid for only where it is needed.
template <bool kUnbounded, typename acc_t>
__device__ __forceinline__ acc_t add_kl_term(acc_t divergence, acc_t p, acc_t log_ratio) {
  return kUnbounded && p == acc_t(0) ? divergence : fma(p, log_ratio, divergence);
}

}  // namespace
}  // namespace pairloss::cuda
