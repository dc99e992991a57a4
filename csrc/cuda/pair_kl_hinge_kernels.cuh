// The pair KL hinge loss and its gradient: the algorithm, and the order of the launches. No
// framework header here, nor in what this file includes, so that the emulation in
// tests/cuda_emulation/ compiles all of it; tensors, checks and dispatch are in pair_kl_hinge.cu.
//
// With P = softmax(z), L = log P, D_ij = sum_k P_ik (L_ik - L_jk) and g_ij = dLoss/dD_ij, which is
// +similar_scale for similar pairs, -dissimilar_scale for dissimilar pairs with D_ij < margin, else
// 0, summed over the levels of the labels and multiplied by the weight of the pair:
//
//   A_i = sum_j g_ij (L_i - L_j)    d_i = P_i . A_i = sum_j g_ij D_ij
//   B_i = sum_j g_ji (P_i - P_j)
//   dLoss/dz_i = P_i * (A_i - d_i) + B_i        (gradient "second": B_i alone)
//
// Similar pairs go the same way as dissimilar ones. Their closed form, O(N K) per class, would not
// save the pass over the pairs that the hinge needs. In large batches (*) tiles of pairs whose side
// of the margin is certain are left out of it.
//
//   keys_kernel          (*) the order of the rows, in which like ones are neighbours (order.cuh)
//   sort_runs_kernel     (*)
//   positions_kernel     (*)
//   prepare_kernel       P and L; numbers of pairs (prepare.cuh)
//   extrema_kernel       the reference row of the tensor cores' operands, and
//   planes_kernel        those operands (planes.cuh); in float64 neither
//   levels_kernel        from the numbers, the scales of each level
//   summaries_kernel     (*) what there is to know of a tile of rows (certificates.cuh)
//   for every chunk of rows i, against the columns j from its own rows on:
//     bounds_kernel      (*) the tiles of pairs that are inside or beyond the margin
//     states_kernel      (*) from these and the labels, which tiles add nothing, which have a
//                        closed form, and which are open (open_tiles.cuh)
//     lists_kernel       (*) the open ones
//     closed_sums_kernel (*) the sums of those with a closed form (closed_forms.cuh)
//     tensor_losses_kernel
//                        D_ij and D_ji by tiles of 64 x 64 (tensor_divergences.cuh); from them the
//                        rows' loss sums, and marks of four bits per pair and level (losses.cuh),
//                        of the tile and of its mirror image
//     losses_kernel      the same in FMA (divergences.cuh): in float64 all tiles, else those with
//                        infinities or NaN
//     tensor_products_kernel
//                        A and B from the marks (tensor_products.cuh); in float64 nothing
//     products_kernel    the rest of A and B, by tiles of 64 rows x 16 or 64 classes (products.cuh)
//     row_losses_kernel  the rows' losses, where there are many tiles of them (results.cuh)
//     finish_kernel      the rows' gradients, from their parts (results.cuh)
//     tensor_products_kernel, products_kernel, row_losses_kernel
//                        (+) the same for the rows behind the chunk, from the mirror images: added
//                        to their sums
//   reduce_kernel        the loss and the statistics
//
// (+) is for batches of several chunks: so each pair's divergences are computed once, and a row's
// sums are complete when its own chunk comes.
//
// Small batches (small_batch.cuh says which) take two launches, since they would mostly wait for
// them:
//
//   prepare_kernel
//   small_batch_kernel   everything else, by blocks of eight rows against all columns
//
// With a reference set the rows are those of the batch and the columns all of the set. Its
// gradient is a second pass with the roles exchanged, and made only if it is asked for.
//
// Work is cut into more blocks than a GPU runs at a time, in a way that depends on the sizes only
// (plan.cuh). Every block writes partial sums of its own, and they are added in a fixed order, so
// the result is the same to the bit from run to run, whatever the number of multiprocessors. The
// only atomics are those of extrema, and the count of the small batch's blocks that are done.
#pragma once

#include "cuda/plan.cuh"
#include "cuda/results.cuh"
#include "cuda/small_batch.cuh"

namespace pairloss::cuda {

// What run_pair_kl_hinge() works on. Pointers are to device memory, contiguous, unless said
// otherwise; null where an argument was not given or a result is not wanted.
template <typename scalar_t, typename out_t>
struct Evaluation {
  using acc_t = accumulator_t<scalar_t>;
  int64_t rows, classes;               // N >= 1, K >= 1
  int levels;                          // G >= 1
  const scalar_t* logits;              // (N, K)
  const int64_t* labels;               // (N, G), or
  const int8_t* similarity;            // (N, N)
  int64_t ref_rows;                    // M >= 1; 0 without a reference set
  const scalar_t* ref_logits;          // (M, K)
  const int64_t* ref_labels;           // (M, G)
  const acc_t *weights, *ref_weights;  // (N,), (M,)
  const double* level_weights;         // (G,), host memory
  int64_t ignore_index;
  double margin, similar_weight, dissimilar_weight;
  bool balance;
  Gradient gradient;
  Reduction reduction;
  Precision precision;     // of tensor cores
  const acc_t* upstream;   // (N,): the upstream gradient of reduction none
  acc_t* loss;             // (N,) for reduction none, else 0-d; null in the backward
  double* stats;           // (kStats, G); null with loss
  out_t *grad, *ref_grad;  // (N, K), (M, K)
};

enum class Arithmetic { tensor, fma };

// Tests choose; everybody else leaves it to the sizes.
struct Choice {
  bool tiled = false;      // not the kernel for small batches
  int64_t chunk_rows = 0;  // 0: the default; else a multiple of kTile, and tiled
  Arithmetic arithmetic = Arithmetic::tensor;  // of the tiled kernels; float64 has no choice
  int product_splits = 0;  // of the columns, for the gradient's sums; 0: by the sizes
  int pair_blocks = 0;     // that share the tiles; 0: by the sizes
  bool certified = false;  // also a small batch looks for certain tiles
};

namespace {

// Whether all pairs that have a weight in the gradient have the same, but for its sign.
template <typename scalar_t, typename out_t>
bool have_equal_weights(const Evaluation<scalar_t, out_t>& e) {
  return e.levels == 1 && e.similar_weight == e.dissimilar_weight && !e.balance &&
         e.weights == nullptr && e.ref_weights == nullptr && e.upstream == nullptr;
}

template <typename acc_t>
struct Pass {
  Problem<acc_t> problem;
  Plan plan;
  Chunk<acc_t> chunk, behind;
  EarlierSums<acc_t> earlier;
  double* losses = nullptr;  // (rows,); null where finish_kernel adds them up
  SmallBatch<acc_t> small;   // instead of the plan and the chunk
  Verdicts verdicts;         // with certificates
  ClosedForms closed;        // likewise
};

// Everything that the kernels work on.
template <typename acc_t>
struct Work {
  Pass<acc_t> pass, ref_pass;
  bool with_pass, with_ref_pass, small, tensor, certified;
  Ordering<acc_t> ordering, ref_ordering;  // if certified
  PairTiles count_tiles;
  Counts* counts;
  Level<acc_t>* levels;
  unsigned* ticket;

  template <typename scalar_t, typename out_t>
  Work(const Evaluation<scalar_t, out_t>& e, const Choice& choice, Workspace& workspace) {
    const bool within = e.ref_rows == 0, both = e.gradient == Gradient::both;
    small = !choice.tiled && choice.chunk_rows == 0 &&
            is_small<acc_t>(e.rows, std::max(e.rows, e.ref_rows), e.classes, e.levels);
    tensor = std::is_same_v<acc_t, float> && !small && choice.arithmetic == Arithmetic::tensor;
    // A similarity matrix says nothing of whole tiles, and is in the caller's order.
    certified = !small && e.similarity == nullptr &&
                (choice.certified || is_certified(e.rows, within ? e.rows : e.ref_rows, e.classes));
    Problem<acc_t>& problem = pass.problem;
    problem.rows = {e.rows, e.labels, e.weights, e.upstream};
    ordering = take(workspace, e, problem.rows);
    problem.columns = problem.rows;
    if (!within) {
      problem.columns = {e.ref_rows, e.ref_labels, e.ref_weights};
      ref_ordering = take(workspace, e, problem.columns);
    }
    if (tensor) problem.extrema = take_extrema(workspace, e.classes);
    problem.within = within;
    problem.classes = e.classes;
    problem.level_count = e.levels;
    problem.ignore_index = e.ignore_index;
    problem.similarity = e.similarity;
    problem.margin = static_cast<acc_t>(e.margin);
    count_tiles = cuda::count_tiles(e.rows, e.ref_rows, within);
    counts = workspace.take<Counts>(int64_t{count_tiles.count()} * e.levels);
    problem.levels = levels = workspace.take<Level<acc_t>>(e.levels);

    ticket = workspace.take<unsigned>(1);

    const auto make_pass = [&](Pass<acc_t>& made, bool with_sums, bool with_grad) {
      const int64_t rows = made.problem.rows.rows, columns = made.problem.columns.rows;
      if (small) {
        made.small = {counts, count_tiles.count()};
        take_small_batch(workspace, rows, e.levels, made.small);
        made.small.ticket = ticket;
        return;
      }
      const int64_t usual = default_chunk_rows(rows, columns, e.classes, e.levels, within);
      made.plan =
          make_plan(made.problem, tensor, choice.chunk_rows > 0 ? choice.chunk_rows : usual);
      made.plan.equal_weights = have_equal_weights(e);
      made.plan.precision = e.precision;
      made.plan.certified = certified;
      if (choice.product_splits > 0) made.plan.product_splits = choice.product_splits;
      if (choice.pair_blocks > 0) made.plan.pair_blocks = choice.pair_blocks;
      made.chunk = take_chunk<acc_t>(workspace, made.plan, both, with_sums, with_grad);
      made.behind = take_behind(workspace, made.plan, both, with_grad, made.earlier);
      if (made.plan.sums_row_losses()) made.losses = workspace.take<double>(rows);
      if (!certified) return;
      made.verdicts = take_open_tiles(workspace, made.plan, made.chunk, made.behind);
      made.closed = take_closed_forms(workspace, made.plan, made.chunk);
    };
    with_pass = e.stats != nullptr || e.grad != nullptr;
    with_ref_pass = e.ref_grad != nullptr;
    if (with_pass) make_pass(pass, e.stats != nullptr, e.grad != nullptr);
    if (with_ref_pass) {
      ref_pass.problem = problem;
      std::swap(ref_pass.problem.rows, ref_pass.problem.columns);
      make_pass(ref_pass, false, true);
    }
  }

  // What there is of one side.
  template <typename scalar_t, typename out_t>
  Ordering<acc_t> take(Workspace& workspace, const Evaluation<scalar_t, out_t>& e,
                       Side<acc_t>& side) const {
    Ordering<acc_t> of_side;
    if (certified) {
      of_side = take_ordering(workspace, e.levels, side);
      take_summaries(workspace, e.classes, e.levels, side);
    }
    take_side(workspace, e.classes, tensor, e.precision, side);
    return of_side;
  }
};

template <bool kBoth>
void launch_tensor_products(const Problem<float>& problem, const Plan& plan,
                            const Chunk<float>& chunk, cudaStream_t stream) {
  const int64_t blocks = tensor_product_blocks(chunk.rows, plan.classes);
  dispatch_precision(plan.precision, [&](auto mode) {
    using Factors = typename decltype(mode)::SumFactors;
    launch_with_shared(
        plan.equal_weights ? tensor_products_kernel<kBoth, EqualWeights, Factors>
                           : tensor_products_kernel<kBoth, AnyWeights<Factors::kPlanes>, Factors>,
        dim3(static_cast<unsigned>(blocks), chunk.product_splits), tensor_product_threads(kBoth),
        kProductSharedBytes<kBoth, Factors>, stream, problem, chunk);
  });
}

template <bool kBoth, typename acc_t>
void launch_products(const Problem<acc_t>& problem, const Plan& plan, const Chunk<acc_t>& chunk,
                     cudaStream_t stream) {
  if constexpr (std::is_same_v<acc_t, float>) {
    if (problem.columns.planes != nullptr)
      launch_tensor_products<kBoth>(problem, plan, chunk, stream);
  }
  const dim3 grid(static_cast<unsigned>(chunk.tiles.row_tiles), chunk.product_splits, plan.panels);
  if constexpr (std::is_same_v<acc_t, float>) {
    if (plan.panel == kWidePanel) {
      launch(products_kernel<kWidePanel, kBoth, acc_t>, grid, product_threads(kWidePanel), stream,
             problem, chunk);
      return;
    }
  }
  launch(products_kernel<kNarrowPanel, kBoth, acc_t>, grid, product_threads(kNarrowPanel), stream,
         problem, chunk);
}

template <typename acc_t>
void launch_losses(const Pass<acc_t>& pass, cudaStream_t stream) {
  const Problem<acc_t>& problem = pass.problem;
  const Plan& plan = pass.plan;
  const Chunk<acc_t>& chunk = pass.chunk;
  const Behind<acc_t> behind{pass.behind.marks, pass.behind.loss, pass.behind.stride};
  if (plan.class_parts > 1) {
    const dim3 grid(plan.class_parts, static_cast<unsigned>(chunk.tiles.count()));
    if constexpr (std::is_same_v<acc_t, float>) {
      if (plan.tensor)
        dispatch_precision(plan.precision, [&](auto mode) {
          using Factors = typename decltype(mode)::Factors;
          launch_with_shared(tensor_partial_kernel<Factors, acc_t>, grid, TensorLayout::kThreads,
                             kTensorSharedBytes<Factors>, stream, problem, chunk);
        });
    }
    launch(partial_divergences_kernel<acc_t>, grid, FmaLayout::kThreads, stream, problem, chunk);
    const int64_t elements = chunk.tiles.count() * kTileElements;
    launch(sum_parts_kernel<acc_t>, dim3(static_cast<unsigned>(ceil_div(elements, kSumThreads))),
           kSumThreads, stream, elements, plan.class_parts, chunk.partial);
  }
  const dim3 grid(plan.pair_blocks);
  launch(losses_kernel<acc_t>, grid, FmaLayout::kThreads, stream, problem, chunk, behind);
  if constexpr (std::is_same_v<acc_t, float>) {
    if (!plan.tensor) return;
    Chunk<acc_t> rest = chunk;
    if (rest.level_sums != nullptr) rest.level_sums += plan.fma_warps() * plan.levels;
    dispatch_precision(plan.precision, [&](auto mode) {
      using Factors = typename decltype(mode)::Factors;
      launch_with_shared(tensor_losses_kernel<Factors, acc_t>, grid, TensorLayout::kThreads,
                         kTensorSharedBytes<Factors>, stream, problem, rest, behind);
    });
  }
}

// Keys and positions of all rows.
template <typename scalar_t, typename out_t, typename acc_t>
void launch_ordering(const Evaluation<scalar_t, out_t>& e, const Work<acc_t>& work,
                     cudaStream_t stream) {
  const auto &batch = work.ordering, &reference = work.ref_ordering;
  launch(keys_kernel<scalar_t, acc_t>, dim3(static_cast<unsigned>(e.rows + e.ref_rows)),
         row_threads(e.classes), stream, batch, reference, e.classes, e.levels, e.ignore_index,
         e.logits, e.ref_logits);
  const int64_t blocks = ceil_div(e.rows, kOrderKeys) + ceil_div(e.ref_rows, kOrderKeys);
  launch(sort_runs_kernel<acc_t>, dim3(static_cast<unsigned>(blocks)), kOrderThreads, stream, batch,
         reference);
  launch(positions_kernel<acc_t>, dim3(static_cast<unsigned>(blocks)), kOrderThreads, stream, batch,
         reference, e.levels);
}

template <typename acc_t>
void launch_summaries(const Problem<acc_t>& problem, cudaStream_t stream) {
  const int64_t ref_rows = problem.within ? 0 : problem.columns.rows;
  const int64_t tiles = ceil_div(problem.rows.rows, kTile) + ceil_div(ref_rows, kTile);
  launch(summaries_kernel<acc_t>, dim3(static_cast<unsigned>(tiles)), kSummaryThreads, stream,
         problem);
}

template <typename acc_t>
void launch_certificates(const Pass<acc_t>& pass, cudaStream_t stream) {
  const Problem<acc_t>& problem = pass.problem;
  const Chunk<acc_t>&chunk = pass.chunk, &behind = pass.behind;
  const Verdicts& verdicts = pass.verdicts;
  const auto [row_tiles, column_tiles, once] = chunk.tiles;
  const TileSpan<acc_t> rows{problem.rows, static_cast<int>(chunk.first / kTile), row_tiles};
  const TileSpan<acc_t> columns{problem.columns, chunk.first_column_tile, column_tiles};
  const auto launch_bounds = [&](const TileSpan<acc_t>& from, const TileSpan<acc_t>& to,
                                 uint8_t* verdicts) {
    const int64_t blocks = from.count * ceil_div(to.count, kBoundTiles);
    launch(bounds_kernel<acc_t>, dim3(static_cast<unsigned>(blocks)), FmaLayout::kThreads, stream,
           problem, from, to, verdicts);
  };
  launch_bounds(rows, columns, verdicts.of_rows);
  if (!once) {
    launch_bounds(columns, rows, verdicts.of_columns);
  } else if (behind.rows > 0) {
    const TileSpan<acc_t> others{problem.columns, rows.first + row_tiles, behind.tiles.row_tiles};
    launch_bounds(others, rows, verdicts.of_columns);
  }
  const int64_t blocks = ceil_div(chunk.tiles.count(), kListThreads);
  const int64_t groups = ceil_div(row_tiles, group_tiles(problem)) +
                         ceil_div(behind.tiles.row_tiles, group_tiles(problem));
  launch(states_kernel<acc_t>, dim3(static_cast<unsigned>(blocks)), kListThreads, stream, problem,
         chunk, behind, verdicts);
  launch(lists_kernel<acc_t>, dim3(static_cast<unsigned>(blocks + groups)), kListThreads, stream,
         problem, chunk, behind, verdicts);
  launch(closed_sums_kernel<acc_t>,
         dim3(static_cast<unsigned>(row_tiles + behind.tiles.row_tiles),
              closed_parts(problem.classes)),
         kClosedThreads, stream, problem, chunk, behind, pass.closed);
}

inline void launch_planes(const Problem<float>& problem, Precision precision, cudaStream_t stream) {
  const int64_t ref_rows = problem.within ? 0 : problem.columns.rows;
  const int64_t tiles = ceil_div(problem.rows.rows, kTile) + ceil_div(ref_rows, kTile);
  launch(extrema_kernel<float>, dim3(static_cast<unsigned>(tiles)), kExtremaThreads, stream,
         problem);
  const auto [of_row, of_block] = plane_threads(problem.classes);
  const dim3 grid(static_cast<unsigned>(tiles * kTile * of_row / of_block));
  dispatch_precision(precision, [&, of_row = of_row, of_block = of_block](auto mode) {
    launch(planes_kernel<decltype(mode), float>, grid, of_block, stream, problem, of_row);
  });
}

// The sums of a row, which is behind the first chunk, and of all after it.
template <typename acc_t>
EarlierSums<acc_t> sums_from(const Pass<acc_t>& pass, int64_t row) {
  EarlierSums<acc_t> sums = pass.earlier;
  const int64_t skipped = row - pass.plan.chunk_rows;
  if (sums.a != nullptr) sums.a += skipped * pass.plan.classes;
  if (sums.b != nullptr) sums.b += skipped * pass.plan.classes;
  return sums;
}

// Sets the pass to the chunk that begins with a row.
template <typename acc_t>
void begin_chunk(Pass<acc_t>& pass, int64_t first) {
  const Plan& plan = pass.plan;
  Chunk<acc_t>&chunk = pass.chunk, &behind = pass.behind;
  chunk.first = first;
  chunk.rows = std::min(plan.chunk_rows, plan.rows - first);
  chunk.tiles = plan.tiles(chunk.rows, first);
  if (!plan.once) return;
  chunk.first_column_tile = behind.first_column_tile = static_cast<int>(first / kTile);
  behind.first = first + chunk.rows;
  behind.rows = plan.rows - behind.first;
  behind.tiles = {chunk.tiles.column_tiles - chunk.tiles.row_tiles, chunk.tiles.row_tiles, false};
  behind.adds = first > 0;
  if (behind.rows == 0) return;
  const EarlierSums<acc_t> sums = sums_from(pass, behind.first);
  behind.a = sums.a;
  behind.b = sums.b;
}

// Of the pass's chunk, or of the rows behind it. adds: to those of earlier chunks.
template <typename acc_t>
void launch_row_losses(const Pass<acc_t>& pass, const Chunk<acc_t>& chunk, bool adds,
                       cudaStream_t stream) {
  launch(row_losses_kernel<acc_t>, dim3(static_cast<unsigned>(chunk.tiles.row_tiles)),
         kRowLossThreads, stream, chunk, adds, pass.losses + chunk.first);
}

template <bool kBoth, typename acc_t, typename out_t>
void run_tiled(Pass<acc_t>& pass, acc_t* row_loss, out_t* grad, cudaStream_t stream) {
  const Problem<acc_t>& problem = pass.problem;
  const Plan& plan = pass.plan;
  const Chunk<acc_t>&chunk = pass.chunk, &behind = pass.behind;
  for (int64_t first = 0; first < plan.rows; first += plan.chunk_rows) {
    begin_chunk(pass, first);
    if (plan.certified) launch_certificates(pass, stream);
    launch_losses(pass, stream);
    if (grad == nullptr && row_loss == nullptr) continue;
    if (grad != nullptr) launch_products<kBoth>(problem, plan, chunk, stream);
    const bool has_earlier = plan.once && first > 0;
    const EarlierSums<acc_t> earlier = has_earlier ? sums_from(pass, first) : EarlierSums<acc_t>{};
    if (pass.losses != nullptr) launch_row_losses(pass, chunk, has_earlier, stream);
    const double* const losses = pass.losses != nullptr ? pass.losses + first : nullptr;
    launch(finish_kernel<kBoth, acc_t, out_t>, dim3(static_cast<unsigned>(chunk.rows)),
           row_threads(plan.classes), stream, problem, chunk, losses, earlier, row_loss, grad,
           pass.closed);
    if (behind.rows == 0) continue;
    if (grad != nullptr) launch_products<kBoth>(problem, plan, behind, stream);
    launch_row_losses(pass, behind, behind.adds, stream);
  }
}

inline LevelWeights level_weights(const double* given, int first, int level_count) {
  LevelWeights weights;
  for (int i = 0; i < kLevelsPerLaunch; ++i)
    weights.of[i] = given != nullptr && first + i < level_count ? given[first + i] : 1.0;
  return weights;
}

template <bool kBoth, typename scalar_t, typename out_t>
void run(const Evaluation<scalar_t, out_t>& e, const Choice& choice, void* allocation,
         cudaStream_t stream) {
  using acc_t = accumulator_t<scalar_t>;
  Workspace workspace(allocation);
  Work<acc_t> work(e, choice, workspace);
  const bool within = e.ref_rows == 0;
  const Weighting weighting{e.similar_weight, e.dissimilar_weight, e.balance, e.reduction};
  const bool per_row = e.reduction == Reduction::none;
  acc_t *const no_loss = nullptr, *const row_loss = per_row ? e.loss : nullptr,
               *const loss = per_row ? nullptr : e.loss;
  double* const no_stats = nullptr;

  if (work.certified) launch_ordering(e, work, stream);
  const int64_t blocks = work.count_tiles.count() + e.rows + e.ref_rows;
  launch(prepare_kernel<scalar_t, acc_t>, dim3(static_cast<unsigned>(blocks)),
         row_threads(e.classes), stream, work.pass.problem, e.logits, e.ref_logits,
         work.count_tiles, work.counts, work.ticket);

  if (work.small) {
    const auto run_small = [&](const Pass<acc_t>& pass, acc_t* row_loss, acc_t* loss, double* stats,
                               out_t* grad) {
      const int64_t small_blocks = ceil_div(pass.problem.rows.rows, kSmallRows);
      launch(small_batch_kernel<kBoth, acc_t, out_t>, dim3(static_cast<unsigned>(small_blocks)),
             kSmallThreads, stream, pass.problem, pass.small, weighting,
             level_weights(e.level_weights, 0, e.levels), row_loss, loss, stats, grad);
    };
    if (work.with_pass) run_small(work.pass, row_loss, loss, e.stats, e.grad);
    if (work.with_ref_pass) run_small(work.ref_pass, no_loss, no_loss, no_stats, e.ref_grad);
    return;
  }

  if constexpr (std::is_same_v<acc_t, float>) {
    if (work.tensor) launch_planes(work.pass.problem, e.precision, stream);
  }
  for (int first = 0; first < e.levels; first += kLevelsPerLaunch)
    launch(levels_kernel<acc_t>, dim3(1), kReduceThreads, stream, first, e.levels, within,
           work.counts, work.count_tiles.count(), weighting,
           level_weights(e.level_weights, first, e.levels), work.levels);
  if (work.certified) launch_summaries(work.pass.problem, stream);
  if (work.with_pass) run_tiled<kBoth>(work.pass, row_loss, e.grad, stream);
  if (work.with_ref_pass) run_tiled<kBoth>(work.ref_pass, no_loss, e.ref_grad, stream);
  if (e.stats != nullptr)
    launch(reduce_kernel<acc_t>, dim3(1), kReduceThreads, stream, e.levels, within, work.levels,
           work.pass.chunk.level_sums, work.pass.plan.level_slots(), loss, e.stats);
}

}  // namespace

template <typename scalar_t, typename out_t>
int64_t workspace_bytes(const Evaluation<scalar_t, out_t>& evaluation, const Choice& choice = {}) {
  Workspace workspace(nullptr);
  Work<accumulator_t<scalar_t>>(evaluation, choice, workspace);
  return workspace.bytes();
}

// allocation: workspace_bytes(...) bytes. Everything is queued on the stream.
template <typename scalar_t, typename out_t>
void run_pair_kl_hinge(const Evaluation<scalar_t, out_t>& evaluation, void* allocation,
                       cudaStream_t stream, const Choice& choice = {}) {
  if (evaluation.gradient == Gradient::both)
    run<true>(evaluation, choice, allocation, stream);
  else
    run<false>(evaluation, choice, allocation, stream);
}

}  // namespace pairloss::cuda
