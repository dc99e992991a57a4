// The loss over a list of pairs and its gradient: device code and the order of the launches. No
// framework header, as in pair_kl_hinge_kernels.cuh; tensors, checks and dispatch are in
// pair_list_kl_hinge.cu.
//
// The list comes flattened and sorted by row (stable), so that every row finds its partners in one
// place and in the order of the list. A warp walks over the partners of its row and writes that
// row's sums and gradient alone: nothing depends on the order of warps. Only integers are added
// atomically.
//
//   list_softmax_kernel   P and L
//   list_counts_kernel    the numbers of pairs of each kind
//   list_rows_kernel      the rows' losses and gradients
//   list_reduce_kernel    the loss and the statistics
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/reductions.cuh"
#include "cuda/search.cuh"
#include "pair_math.h"

namespace pairloss::cuda {
namespace {

constexpr int kListThreads = 256, kListReduceThreads = 1024;

struct ListCounts {
  unsigned long long similar, dissimilar;  // unordered pairs
  int bad_index;                           // some entry is no row
};

struct ListRowSums {
  double similar, dissimilar;  // of scale * weight * l_ij over the partners j of row i
  int64_t active;
};

// acc_t: double for float64, float for the others. out_t: of the gradient.
template <typename scalar_t, typename acc_t, typename out_t>
struct PairListCall {
  int64_t rows = 0, classes = 0, count = 0;  // N, K, E
  const scalar_t* logits = nullptr;          // (N, K)
  const int64_t* pairs = nullptr;            // (E, 2)
  const int64_t* sorted = nullptr;           // (2 E,): pairs, flattened and sorted
  const int64_t* order = nullptr;            // (2 E,): where in pairs each of them stood
  const bool* similar = nullptr;             // (E,)
  const acc_t* pair_weights = nullptr;       // (E,), or null for ones
  const acc_t* upstream = nullptr;           // (N,): the gradient of the rows' losses; or null
  double margin = 0.0, similar_weight = 1.0, dissimilar_weight = 1.0;
  bool balance = false;
  Gradient gradient = Gradient::both;
  Reduction reduction = Reduction::mean;
  acc_t* loss = nullptr;    // 0-d, or (N,) for none; null in the backward
  double* stats = nullptr;  // kStats; null in the backward
  out_t* grad = nullptr;    // (N, K), or null
  // Workspace.
  acc_t* p = nullptr;             // (N, K)
  acc_t* log_p = nullptr;         // (N, K), log P + log K
  double* sums = nullptr;         // (N, K), of the gradient; with grad
  ListRowSums* of_row = nullptr;  // (N,)
  ListCounts* counts = nullptr;   // one

  __device__ bool is_row(int64_t index) const { return index >= 0 && index < rows; }

  // Not a number if some index is bad: there is no other way to say so without a wait.
  __device__ KindScales scales() const {
    if (counts->bad_index) return {NAN, NAN};
    return kind_scales(reduction, static_cast<double>(counts->similar),
                       static_cast<double>(counts->dissimilar), similar_weight, dissimilar_weight,
                       balance);
  }
};

__device__ int64_t list_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// A warp per row, in double, which takes the rounding of log-sum-exp out of the differences of
// rows. log K cancels in them; where P is nearly uniform what is stored is small and keeps its
// digits.
template <typename Call>
__global__ void __launch_bounds__(kListThreads, 1) list_softmax_kernel(Call call) {
  if (list_thread() == 0) *call.counts = {0, 0, 0};
  const int64_t row = list_thread() / kWarp, lane = threadIdx.x % kWarp;
  if (row >= call.rows) return;
  const auto* z = call.logits + row * call.classes;
  using acc_t = std::remove_reference_t<decltype(*call.p)>;

  // fmax drops NaN, but the sum does not. +inf gives inf - inf = NaN, and so do -inf throughout.
  double largest = -INFINITY;
  for (int64_t k = lane; k < call.classes; k += kWarp)
    largest = fmax(largest, static_cast<double>(z[k]));
  largest = reduce_lanes<Maximum>(largest);
  double sum = 0.0;
  for (int64_t k = lane; k < call.classes; k += kWarp)
    sum += exp(static_cast<double>(z[k]) - largest);
  sum = reduce_lanes<Sum>(sum);

  const double log_mean = log(sum / static_cast<double>(call.classes)), reciprocal = 1.0 / sum;
  for (int64_t k = lane; k < call.classes; k += kWarp) {
    const double shifted = static_cast<double>(z[k]) - largest;
    const int64_t at = row * call.classes + k;
    call.p[at] = flush_probability(static_cast<acc_t>(exp(shifted) * reciprocal));
    call.log_p[at] = static_cast<acc_t>(shifted - log_mean);
  }
}

template <typename Call>
__global__ void __launch_bounds__(kListThreads) list_counts_kernel(Call call) {
  unsigned long long similar = 0, dissimilar = 0;
  int bad = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t e = list_thread(); e < call.count; e += stride) {
    const int64_t i = call.pairs[2 * e], j = call.pairs[2 * e + 1];
    bad |= !call.is_row(i) || !call.is_row(j);
    similar += i != j && call.similar[e];
    dissimilar += i != j && !call.similar[e];
  }
  similar = reduce_lanes<Sum>(similar);
  dissimilar = reduce_lanes<Sum>(dissimilar);
  bad = __any_sync(kAllLanes, bad);
  if (threadIdx.x % kWarp != 0) return;
  if (similar > 0) atomicAdd(&call.counts->similar, similar);
  if (dissimilar > 0) atomicAdd(&call.counts->dissimilar, dissimilar);
  if (bad) atomicOr(&call.counts->bad_index, 1);
}

// A warp per row, a lane for every 32nd class. Two blocks at least per multiprocessor: left to
// itself, the compiler spills in float64.
template <typename Call>
__global__ void __launch_bounds__(kListThreads, 2) list_rows_kernel(Call call) {
  using acc_t = std::remove_reference_t<decltype(*call.p)>;
  const int64_t i = list_thread() / kWarp, lane = threadIdx.x % kWarp;
  if (i >= call.rows) return;
  const int64_t classes = call.classes;
  const acc_t *p_i = call.p + i * classes, *log_p_i = call.log_p + i * classes;
  double* const sums = call.grad == nullptr ? nullptr : call.sums + i * classes;
  for (int64_t k = lane; sums != nullptr && k < classes; k += kWarp) sums[k] = 0.0;

  const KindScales scales = call.scales();
  const acc_t margin = static_cast<acc_t>(call.margin);
  const bool first_too = call.gradient == Gradient::both;
  const int64_t begin = lower_bound_of_warp(call.sorted, 2 * call.count, i);
  const int64_t end = lower_bound_of_warp(call.sorted, 2 * call.count, i + 1);
  ListRowSums of_row{0.0, 0.0, 0};
  double both_ways = 0.0;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t entry = call.order[at], e = entry / 2, j = call.pairs[entry ^ 1];
    if (j == i || !call.is_row(j)) continue;
    const acc_t *p_j = call.p + j * classes, *log_p_j = call.log_p + j * classes;
    acc_t there = 0, back = 0;  // D_ij, D_ji
    for (int64_t k = lane; k < classes; k += kWarp) {
      const acc_t ratio = log_p_i[k] - log_p_j[k];
      there += kl_term(p_i[k], ratio);
      back -= kl_term(p_j[k], ratio);
    }
    there = reduce_lanes<Sum>(there);
    back = reduce_lanes<Sum>(back);

    const bool similar = call.similar[e];
    double weight = similar ? scales.similar : scales.dissimilar;
    if (call.pair_weights != nullptr) weight *= call.pair_weights[e];
    const double loss_there = weight * pair_loss(there, similar, margin);
    (similar ? of_row.similar : of_row.dissimilar) += loss_there;
    both_ways += loss_there + weight * pair_loss(back, similar, margin);
    const bool there_counts = similar || is_active(there, margin);
    const bool back_counts = similar || is_active(back, margin);
    of_row.active += !similar && there_counts;
    if (sums == nullptr) continue;

    // In the loss of row i and in that of row j.
    if (call.upstream != nullptr) weight *= call.upstream[i] + call.upstream[j];
    const double g = similar ? weight : -weight;
    const bool first = first_too && there_counts;
    for (int64_t k = lane; k < classes; k += kWarp) {
      double sum = 0.0;
      // Where P = 0, the difference may be infinite or NaN.
      if (first) sum += g * kl_term(p_i[k], log_p_i[k] - log_p_j[k]);
      if (back_counts) sum += g * (p_i[k] - p_j[k]);
      sums[k] += sum;
    }
  }

  // Over the classes, the first argument's part is sum_j g_ij D_ij and the second's 0. Taken from
  // the sums, not from the divergences, rounding too leaves the classes by their P, and a gradient
  // that adds up to 0: see without_rest() in results.cuh.
  double sum_of_row = 0.0;
  for (int64_t k = lane; sums != nullptr && k < classes; k += kWarp) sum_of_row += sums[k];
  sum_of_row = reduce_lanes<Sum>(sum_of_row);
  for (int64_t k = lane; sums != nullptr && k < classes; k += kWarp) {
    const double mean = p_i[k] == acc_t(0) ? 0.0 : p_i[k] * sum_of_row;
    using out_t = std::remove_reference_t<decltype(*call.grad)>;
    call.grad[i * classes + k] = static_cast<out_t>(static_cast<acc_t>(sums[k] - mean));
  }
  if (lane != 0) return;
  call.of_row[i] = of_row;
  if (call.loss != nullptr && call.reduction == Reduction::none)
    call.loss[i] = static_cast<acc_t>(both_ways);
}

// One block, in the order of the rows.
template <typename Call>
__global__ void __launch_bounds__(kListReduceThreads, 1) list_reduce_kernel(Call call) {
  double similar = 0.0, dissimilar = 0.0;
  unsigned long long active = 0;
#pragma unroll 4  // it waits for memory alone
  for (int64_t row = threadIdx.x; row < call.rows; row += kListReduceThreads) {
    similar += call.of_row[row].similar;
    dissimilar += call.of_row[row].dissimilar;
    active += static_cast<unsigned long long>(call.of_row[row].active);
  }
  similar = reduce_block<Sum>(similar);
  dissimilar = reduce_block<Sum>(dissimilar);
  active = reduce_block<Sum>(active);
  if (threadIdx.x != 0) return;
  const ListCounts counts = *call.counts;
  const double dissimilar_pairs = static_cast<double>(counts.dissimilar);
  if (counts.bad_index) similar = NAN;
  call.stats[kSimilarPairs] = static_cast<double>(counts.similar);
  call.stats[kDissimilarPairs] = dissimilar_pairs;
  call.stats[kActiveFraction] =
      counts.dissimilar > 0 ? static_cast<double>(active) / (2.0 * dissimilar_pairs) : 0.0;
  call.stats[kSimilarPart] = similar;
  call.stats[kDissimilarPart] = dissimilar;
  using acc_t = std::remove_reference_t<decltype(*call.loss)>;
  if (call.reduction != Reduction::none) *call.loss = static_cast<acc_t>(similar + dissimilar);
}

// Hands out 256-byte aligned pieces of one allocation; without one, only measures.
class ListWorkspace {
 public:
  explicit ListWorkspace(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  void take(T*& array, int64_t count) {
    const int64_t begin = bytes_, size = count * static_cast<int64_t>(sizeof(T));
    bytes_ += (size + kWorkspaceGuardBytes + 255) / 256 * 256;
    if (base_ == nullptr) return;
    guard_workspace(base_ + begin + size, bytes_ - begin - size);
    array = reinterpret_cast<T*>(base_ + begin);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

template <typename Call>
int64_t lay_out_list_workspace(Call& call, void* base) {
  ListWorkspace workspace(base);
  workspace.take(call.p, call.rows * call.classes);
  workspace.take(call.log_p, call.rows * call.classes);
  workspace.take(call.sums, call.grad == nullptr ? 0 : call.rows * call.classes);
  workspace.take(call.of_row, call.rows);
  workspace.take(call.counts, 1);
  return workspace.bytes();
}

// call: with its workspace; at least one row.
template <typename Call>
void run_pair_list_kl_hinge(const Call& call, cudaStream_t stream) {
  constexpr int kRowsPerBlock = kListThreads / kWarp;
  const dim3 rows(static_cast<unsigned>((call.rows + kRowsPerBlock - 1) / kRowsPerBlock));
  launch(list_softmax_kernel<Call>, rows, kListThreads, stream, call);
  if (call.count > 0) {
    const int64_t blocks = (call.count + kListThreads - 1) / kListThreads;
    const dim3 grid(static_cast<unsigned>(std::min<int64_t>(blocks, 1024)));
    launch(list_counts_kernel<Call>, grid, kListThreads, stream, call);
  }
  launch(list_rows_kernel<Call>, rows, kListThreads, stream, call);
  if (call.stats != nullptr)
    launch(list_reduce_kernel<Call>, dim3(1), kListReduceThreads, stream, call);
}

}  // namespace
}  // namespace pairloss::cuda
