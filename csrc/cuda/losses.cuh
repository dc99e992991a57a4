// From the divergences of a tile: the rows' losses, the sums of each level, and the marks that the
// gradient is made of.
#pragma once

#include <math.h>

#include "cuda/certificates.cuh"
#include "cuda/divergences.cuh"
#include "cuda/reductions.cuh"
#include "cuda/tensor_divergences.cuh"

namespace pairloss::cuda {
namespace {

// -0 is what changes no sum, not even one that is -0. The sums of row losses begin with it, and a
// pair that takes part adds +0 at least: so what is still -0 is the loss of a row without a pair.
template <typename acc_t>
__device__ bool has_pair(acc_t loss) {
  return loss != acc_t(0) || !signbit(loss);
}

// Of four rows or columns.
template <typename acc_t>
struct QuadLosses {
  acc_t of[kMicro] = {acc_t(-0.0), acc_t(-0.0), acc_t(-0.0), acc_t(-0.0)};
};

// Of one level, without its scale.
template <typename acc_t>
struct KindSums {
  acc_t similar = 0, dissimilar = 0;
  unsigned active = 0;
};

// What is known of the pairs of a warp in a level before they are looked at: that all take part,
// with the same weight (but for those of a row with itself); that they also are dissimilar.
enum class Known { nothing, full, dissimilar };

// The labels in one level of the thread's rows and columns of a tile, whose first row and column of
// the problem are given. Returns whether all of its warp take part; false where that is not to be
// told. By all lanes.
template <typename Layout, typename acc_t>
__device__ __forceinline__ bool load_labels(const Problem<acc_t>& problem, int level,
                                            int64_t first_row, int64_t first_column,
                                            int64_t (&rows)[kMicro],
                                            int64_t (&columns)[Layout::kQuads][kMicro]) {
  if constexpr (Layout::kTellsFull) {
    // A lane loads one of each, and gets the others from their lanes: for every thread to load its
    // own would be an eighth of all instructions behind the products.
    const int lane = threadIdx.x % kWarp;
    const int64_t of_row =
        problem.label(problem.rows, first_row + Layout::warp_row() * kWarp + lane, level);
    const int64_t of_column =
        problem.label(problem.columns, first_column + Layout::warp_column() * kWarp + lane, level);
    const auto get = [](int64_t label, int tile_quad, int m) {
      return __shfl_sync(kAllLanes, label, tile_quad * kMicro % kWarp + m);
    };
#pragma unroll
    for (int m = 0; m < kMicro; ++m) {
      rows[m] = get(of_row, Layout::row_quad(), m);
#pragma unroll
      for (int quad = 0; quad < Layout::kQuads; ++quad)
        columns[quad][m] = get(of_column, Layout::column_quad(quad), m);
    }
    return __all_sync(kAllLanes,
                      of_row != problem.ignore_index && of_column != problem.ignore_index);
  } else {
#pragma unroll
    for (int m = 0; m < kMicro; ++m) {
      rows[m] = problem.label(problem.rows, first_row + Layout::row_quad() * kMicro + m, level);
#pragma unroll
      for (int quad = 0; quad < Layout::kQuads; ++quad)
        columns[quad][m] = problem.label(
            problem.columns, first_column + Layout::column_quad(quad) * kMicro + m, level);
    }
    return false;
  }
}

// add_level() where all pairs take part with the same weight, which is nearly everywhere: the same
// marks, and the same losses but for how they are rounded (the products fuse with the sums), with
// far fewer instructions. There are as many of them as tensor cores need for the divergences of few
// classes. kDissimilar: all are, as in most tiles of rows that are in order.
template <bool kDissimilar, typename acc_t>
__device__ __forceinline__ uint64_t
add_full_level(const Scale<acc_t>& scale, acc_t margin, const int64_t (&row_labels)[kMicro],
               const int64_t (&column_labels)[kMicro], const Divergences<acc_t>& divergences,
               QuadLosses<acc_t>& rows, QuadLosses<acc_t>& columns, KindSums<acc_t>& kinds) {
  constexpr unsigned kSimilarMarks = kSimilarMark | kSimilarMark << kMarkBits;
  constexpr unsigned kAllActiveMarks = 0xaaaaaaaa;
  static_assert(kActiveMark == 2 && kMarkBits == 2);
  unsigned halves[2] = {};
#pragma unroll
  for (int r = 0; r < kMicro; ++r) {
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      const bool similar = !kDissimilar && row_labels[r] == column_labels[c];
      const acc_t ij = divergences.ij[r][c], ji = divergences.ji[r][c];
      const unsigned active_marks = (is_active(ij, margin) ? kActiveMark : 0) |
                                    (is_active(ji, margin) ? kActiveMark << kMarkBits : 0);
      halves[r / 2] |= (similar ? kSimilarMarks : active_marks)
                       << (r % 2 * kRowBits + c * kPairBits);
      const acc_t both = pair_loss(ij, similar, margin) + pair_loss(ji, similar, margin);
      if (similar)
        kinds.similar += both;
      else
        kinds.dissimilar += both;
      const acc_t loss = both * (similar ? scale.similar : scale.dissimilar);
      rows.of[r] += loss;
      columns.of[c] += loss;
    }
  }
  kinds.active += __popc(halves[0] & kAllActiveMarks) + __popc(halves[1] & kAllActiveMarks);
#pragma unroll
  for (int m = 0; m < kMicro; ++m) {  // see has_pair()
    rows.of[m] += acc_t(0);
    columns.of[m] += acc_t(0);
  }
  return uint64_t{halves[1]} << 32 | halves[0];
}

// One level of the thread's 4 x 4 pairs, the first of which is (i0, j0). Returns their marks, and
// adds their losses in both directions to those of the rows, of the columns, and of the kinds.
template <typename acc_t>
__device__ __forceinline__ uint64_t add_level(const Problem<acc_t>& problem, int level, Known known,
                                              int64_t i0, int64_t j0,
                                              const int64_t (&row_labels)[kMicro],
                                              const int64_t (&column_labels)[kMicro],
                                              const Divergences<acc_t>& divergences,
                                              QuadLosses<acc_t>& rows, QuadLosses<acc_t>& columns,
                                              KindSums<acc_t>& kinds) {
  const Scale<acc_t> scale = problem.levels[level].scale;
  if (known == Known::dissimilar)
    return add_full_level<true>(scale, problem.margin, row_labels, column_labels, divergences, rows,
                                columns, kinds);
  if (known == Known::full && !(problem.within && i0 == j0))
    return add_full_level<false>(scale, problem.margin, row_labels, column_labels, divergences,
                                 rows, columns, kinds);
  acc_t row_weights[kMicro], column_weights[kMicro];
#pragma unroll
  for (int m = 0; m < kMicro; ++m) {
    row_weights[m] = value_or(problem.rows.weights, problem.rows, i0 + m, acc_t(1));
    column_weights[m] = value_or(problem.columns.weights, problem.columns, j0 + m, acc_t(1));
  }
  uint64_t marks = 0;
#pragma unroll
  for (int r = 0; r < kMicro; ++r) {
    uint64_t row_marks = 0;
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      int kind_ij, kind_ji;
      problem.kinds(i0 + r, j0 + c, row_labels[r], column_labels[c], kind_ij, kind_ji);
      const acc_t weight = row_weights[r] * column_weights[c];
      acc_t similar = 0, dissimilar = 0;
      unsigned mark = add_pair(kind_ij, divergences.ij[r][c], problem.margin, weight, similar,
                               dissimilar, kinds.active);
      mark |= add_pair(kind_ji, divergences.ji[r][c], problem.margin, weight, similar, dissimilar,
                       kinds.active)
              << kMarkBits;
      row_marks |= uint64_t{mark} << (c * kPairBits);
      kinds.similar += similar;
      kinds.dissimilar += dissimilar;
      if (kind_ij == 0 && kind_ji == 0) continue;
      const acc_t loss = scale.similar * similar + scale.dissimilar * dissimilar + acc_t(0);
      rows.of[r] += loss;
      columns.of[c] += loss;
    }
    marks |= row_marks << (r * kRowBits);
  }
  return marks;
}

// Of the warp; null where the chunk has none.
template <typename Layout, typename acc_t>
__device__ LevelSums* level_sums_of_warp(const Problem<acc_t>& problem, const Chunk<acc_t>& chunk) {
  if (chunk.level_sums == nullptr) return nullptr;
  const int warp = blockIdx.x * (Layout::kThreads / kWarp) + threadIdx.x / kWarp;
  return chunk.level_sums + int64_t{warp} * problem.level_count;
}

// By a whole block, before its first tile.
template <typename Layout, typename acc_t>
__device__ void clear_level_sums(const Problem<acc_t>& problem, const Chunk<acc_t>& chunk) {
  LevelSums* const sums = level_sums_of_warp<Layout>(problem, chunk);
  if (sums == nullptr || chunk.first > 0 || threadIdx.x % kWarp != 0) return;
  for (int level = 0; level < problem.level_count; ++level) sums[level] = {0.0, 0.0, 0};
}

// The losses of quads, summed over the lanes that differ in kLanes, to losses[kTile]. place(quad):
// which quad of the tile it is.
template <int kLanes, int kQuads, typename Place, typename Losses, typename acc_t>
__device__ __forceinline__ void write_part(const QuadLosses<acc_t> (&quads)[kQuads], Place place,
                                           Losses& losses) {
  constexpr int kCount = kQuads * kMicro;
  acc_t sums[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] = quads[i / kMicro].of[i % kMicro];
  const int first = scatter_sums<kLanes, kCount>(sums);
  // Where there are more lanes than sums, some have the same.
  constexpr int kSpareLanes = kLanes & kLanes / kCount;
  if ((threadIdx.x & kSpareLanes) != 0) return;
#pragma unroll
  for (int i = 0; i < sums_of_lane(kLanes, kCount); ++i) {
    const int number = first + i;
    losses[place(number / kMicro) * kMicro + number % kMicro] = sums[i];
  }
}

// The sum of the parts, in their order.
template <int kParts, typename acc_t, typename Losses>
__device__ acc_t sum_of_parts(const Losses& losses, int row) {
  acc_t sum = losses[0][row];
  for (int part = 1; part < kParts; ++part) sum += losses[part][row];
  return sum;
}

// Where the mirror image of a tile goes: to the chunk's own rows, or to those behind. (It is found
// where it is needed, because registers are short.)
template <typename acc_t>
struct MirrorImage {
  uint64_t* marks;
  acc_t* loss;
  int64_t stride;
  int tile;  // of these rows

  __device__ MirrorImage(const Chunk<acc_t>& chunk, const Behind<acc_t>& behind, PairTile of) {
    const bool is_behind = chunk.tiles.is_behind(of);
    marks = is_behind ? behind.marks : chunk.marks;
    loss = is_behind ? behind.loss : chunk.loss;
    stride = is_behind ? behind.stride : chunk.stride;
    tile = of.column - (is_behind ? chunk.tiles.row_tiles : 0);
  }
};

// Whether the pairs of two tiles of rows are known to be dissimilar in a level, as far as they take
// part in it.
template <typename acc_t>
__device__ bool are_dissimilar(const Problem<acc_t>& problem, int64_t row_tile, int64_t column_tile,
                               int level) {
  return problem.rows.summaries.labels != nullptr &&
         are_disjoint(label_set(problem, problem.rows, row_tile, level),
                      label_set(problem, problem.columns, column_tile, level));
}

// Writes all about a tile and, where it stands for two, about its mirror image, which may be of the
// rows behind: marks, and the losses of rows and columns; adds to the warp's sums of the levels,
// which only its first lane touches. There is a barrier between two calls.
template <typename Layout, typename acc_t>
__device__ __forceinline__ void add_tile(const Problem<acc_t>& problem, const Chunk<acc_t>& chunk,
                                         const Behind<acc_t>& behind, PairTile tile,
                                         const Divergences<acc_t> (&divergences)[Layout::kQuads]) {
  const bool mirrored = chunk.tiles.has_mirror(tile);
  // Quads of the chunk.
  const int of_row = tile.row * kTileQuads + Layout::row_quad();
  const auto of_column = [&](int quad) {
    return tile.column * kTileQuads + Layout::column_quad(quad);
  };
  const int64_t first_row = chunk.first + int64_t{tile.row} * kTile;
  const int64_t first_column = chunk.first_column() + int64_t{tile.column} * kTile;
  const bool weighted = problem.rows.weights != nullptr || problem.columns.weights != nullptr;

  QuadLosses<acc_t> rows[1], columns[Layout::kQuads];
  for (int level = 0; level < problem.level_count; ++level) {
    int64_t row_labels[kMicro], column_labels[Layout::kQuads][kMicro];
    const bool all =
        load_labels<Layout>(problem, level, first_row, first_column, row_labels, column_labels);
    Known known = Known::nothing;
    if (all && !weighted && problem.similarity == nullptr)
      known = are_dissimilar(problem, first_row / kTile, first_column / kTile, level)
                  ? Known::dissimilar
                  : Known::full;
    KindSums<acc_t> kinds;
#pragma unroll
    for (int quad = 0; quad < Layout::kQuads; ++quad) {
      const uint64_t marks =
          add_level(problem, level, known, first_row + Layout::row_quad() * kMicro,
                    first_column + Layout::column_quad(quad) * kMicro, row_labels,
                    column_labels[quad], divergences[quad], rows[0], columns[quad], kinds);
      if (chunk.marks == nullptr) continue;
      const int levels = problem.level_count;
      chunk.marks[marks_index(chunk.stride, levels, level, of_column(quad), of_row)] = marks;
      if (!mirrored) continue;
      const MirrorImage<acc_t> image(chunk, behind, tile);
      const int image_row = image.tile * kTileQuads + Layout::column_quad(quad);
      image.marks[marks_index(image.stride, levels, level, of_row, image_row)] = mirror(marks);
    }
    LevelSums* const level_sums = level_sums_of_warp<Layout>(problem, chunk);
    if (level_sums == nullptr) continue;
    kinds.similar = reduce_lanes<Sum>(kinds.similar);
    kinds.dissimilar = reduce_lanes<Sum>(kinds.dissimilar);
    kinds.active = reduce_lanes<Sum>(kinds.active);
    if (threadIdx.x % kWarp != 0) continue;
    const unsigned times = mirrored ? 2 : 1;
    LevelSums& sums = level_sums[level];
    sums.similar += times * static_cast<double>(kinds.similar);
    sums.dissimilar += times * static_cast<double>(kinds.dissimilar);
    sums.active += times * kinds.active;
  }

  PAIRLOSS_SHARED(acc_t, row_losses, [Layout::kRowParts][kTile]);
  PAIRLOSS_SHARED(acc_t, column_losses, [Layout::kColumnParts][kTile]);
  write_part<Layout::kRowLanes>(
      rows, [](int) { return Layout::row_quad(); }, row_losses[Layout::row_part()]);
  write_part<Layout::kColumnLanes>(columns, Layout::column_quad,
                                   column_losses[Layout::column_part()]);
  __syncthreads();
  const int r = threadIdx.x % kTile;
  if (threadIdx.x < kTile)
    chunk.loss[tile.column * chunk.stride + int64_t{tile.row} * kTile + r] =
        sum_of_parts<Layout::kRowParts, acc_t>(row_losses, r);
  else if (mirrored && threadIdx.x < 2 * kTile) {
    const MirrorImage<acc_t> image(chunk, behind, tile);
    image.loss[tile.row * image.stride + int64_t{image.tile} * kTile + r] =
        sum_of_parts<Layout::kColumnParts, acc_t>(column_losses, r);
  }
}

// Grid: any number of blocks, which share the tiles. Writes the chunk's loss and marks, and adds to
// its level_sums, which begin with the first chunk.
template <typename acc_t>
__global__ void __launch_bounds__(FmaLayout::kThreads, sizeof(acc_t) == sizeof(float) ? 2 : 1)
    losses_kernel(Problem<acc_t> problem, Chunk<acc_t> chunk, Behind<acc_t> behind) {
  clear_level_sums<FmaLayout>(problem, chunk);
  if (none_is_for_fma(problem)) return;
  const Share tiles = share(open_count(chunk), blockIdx.x, gridDim.x);
  for (int number = tiles.begin; number < tiles.end; ++number) {
    const PairTile tile = chunk.tiles.at(open_index(chunk, number));
    if (!is_for_fma(problem, chunk, tile)) continue;
    Divergences<acc_t> divergences[FmaLayout::kQuads];
    __syncthreads();  // the tile before has been added
    if (chunk.partial != nullptr)
      load_sum<FmaLayout>(chunk.partial, open_index(chunk, number), divergences);
    else
      add_divergences(problem, chunk.first + int64_t{tile.row} * kTile,
                      chunk.first_column() + int64_t{tile.column} * kTile, {0, problem.classes},
                      divergences[0]);
    add_tile<FmaLayout>(problem, chunk, behind, tile, divergences);
  }
}

// The same on tensor cores.
template <typename Factors, typename acc_t>
__global__ void __launch_bounds__(TensorLayout::kThreads, 2)
    tensor_losses_kernel(Problem<acc_t> problem, Chunk<acc_t> chunk, Behind<acc_t> behind) {
  PAIRLOSS_DYNAMIC_SHARED(Octet, stage, [2][2][Factors::kBlockOctets]);
  clear_level_sums<TensorLayout>(problem, chunk);
  const Share tiles = share(open_count(chunk), blockIdx.x, gridDim.x);
  if (tiles.begin == tiles.end) return;  // the last chunk may have few
  const Share slices{0, Factors::slices(problem.classes)};
  int buffer = 0;
  PairTile tile = chunk.tiles.at(open_index(chunk, tiles.begin)), next;
  if (chunk.partial == nullptr) copy_slice<Factors>(problem, chunk, tile, 0, stage[buffer]);
  for (int number = tiles.begin; number < tiles.end; ++number, tile = next) {
    const bool more = number + 1 < tiles.end;
    if (more) next = chunk.tiles.at(open_index(chunk, number + 1));
    // Asked before the products, which memory then has all the time of to answer.
    const bool is_other = is_for_fma(problem, chunk, tile);
    TensorDivergences divergences;
    if (chunk.partial != nullptr) {
      __syncthreads();  // the tile before has been added
      load_sum<TensorLayout>(chunk.partial, open_index(chunk, number), divergences);
    } else {
      subtract_products<Factors>(problem, chunk, tile, slices, more, next, buffer, stage,
                                 divergences);
    }
    if (is_other) continue;
    add_row_terms(problem, chunk, tile, divergences);
    add_tile<TensorLayout>(problem, chunk, behind, tile, divergences);
  }
}

}  // namespace
}  // namespace pairloss::cuda
