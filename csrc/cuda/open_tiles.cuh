// Which tiles of a chunk are open, as lists for the kernels behind: tiles that are not certain
// (certificates.cuh), in their order, so that blocks can share them evenly; and of every row block
// of the products the columns that they meet.
#pragma once

#include "cuda/closed_forms.cuh"
#include "cuda/tiles.cuh"

namespace pairloss::cuda {
namespace {

constexpr int kListThreads = 256;

// What the lists of a chunk are made of.
struct Verdicts {
  // (row tiles, column tiles) of rows against columns, and (column tiles, row tiles) of columns
  // against rows; within the batch, only of those behind the chunk.
  uint8_t *of_rows = nullptr, *of_columns = nullptr;
  int* open_counts = nullptr;  // of the blocks of states_kernel
};

template <typename acc_t>
__device__ TileState find_state(const Problem<acc_t>& problem, const Chunk<acc_t>& chunk,
                                const Verdicts& verdicts, PairTile tile) {
  const TileSummaries<acc_t>&rows = problem.rows.summaries, &columns = problem.columns.summaries;
  const int64_t row = chunk.first / kTile + tile.row;
  const int64_t column = int64_t{chunk.first_column_tile} + tile.column;
  // Even of no use: products_kernel looks at all of them, see is_left().
  if (rows.kind[row] == TileKind::unbounded || columns.kind[column] == TileKind::unbounded)
    return TileState::open;
  if (rows.kind[row] == TileKind::empty || columns.kind[column] == TileKind::empty)
    return TileState::skipped;
  // A row with itself is no pair.
  if (problem.within && row == column && rows.row_sums[row].count == 1) return TileState::skipped;

  bool similar = false, dissimilar = false, full = true;
  for (int level = 0; level < problem.level_count; ++level) {
    const LabelSet& of_rows = label_set(problem, problem.rows, row, level);
    const LabelSet& of_columns = label_set(problem, problem.columns, column, level);
    const Relation relation = relation_of(of_rows, of_columns);
    if (relation == Relation::unknown) return TileState::open;
    similar |= relation == Relation::similar;
    if (relation != Relation::dissimilar) continue;
    dissimilar = true;
    full &= of_rows.full && of_columns.full;
  }
  const auto [row_tiles, column_tiles, once] = chunk.tiles;
  unsigned verdict = verdicts.of_rows[int64_t{tile.row} * column_tiles + tile.column];
  if (once && !chunk.tiles.is_behind(tile))
    verdict &= verdicts.of_rows[int64_t{tile.column} * column_tiles + tile.row];
  else
    verdict &=
        verdicts.of_columns[int64_t{tile.column - (once ? row_tiles : 0)} * row_tiles + tile.row];
  const bool beyond = !dissimilar || (verdict & kBeyond) != 0;
  if (beyond && !similar) return TileState::skipped;
  if (beyond) return TileState::beyond;
  return full && (verdict & kInside) != 0 ? TileState::inside : TileState::open;
}

// Grid: a thread per tile of the chunk. Writes states, also of the rows behind, and how many of a
// block's are open.
template <typename acc_t>
__global__ void __launch_bounds__(kListThreads)
    states_kernel(Problem<acc_t> problem, Chunk<acc_t> chunk, Chunk<acc_t> behind,
                  Verdicts verdicts) {
  const int index = blockIdx.x * kListThreads + threadIdx.x;
  int open = 0;
  if (index < chunk.tiles.count()) {
    const PairTile tile = chunk.tiles.at(index);
    const TileState state = find_state(problem, chunk, verdicts, tile);
    open = state == TileState::open;
    chunk.states[int64_t{tile.row} * chunk.tiles.column_tiles + tile.column] = state;
    const int beyond = tile.column - chunk.tiles.row_tiles;
    if (chunk.tiles.has_mirror(tile))
      (beyond < 0 ? chunk.states[int64_t{tile.column} * chunk.tiles.column_tiles + tile.row]
                  : behind.states[int64_t{beyond} * behind.tiles.column_tiles + tile.row]) = state;
  }
  open = reduce_block<Sum>(open);
  if (threadIdx.x == 0) verdicts.open_counts[blockIdx.x] = open;
}

// How many threads of the block before this one have the flag; total: how many of all.
__device__ inline int count_before(bool flag, int& total) {
  constexpr int kWarps = kListThreads / kWarp;
  PAIRLOSS_SHARED(int, of_warps, [kWarps]);
  const unsigned flags = __ballot_sync(kAllLanes, flag);
  const int warp = threadIdx.x / kWarp;
  __syncthreads();  // an earlier call may still be reading
  if (threadIdx.x % kWarp == 0) of_warps[warp] = __popc(flags);
  __syncthreads();
  int before = __popc(flags & ((1u << threadIdx.x % kWarp) - 1));
  total = 0;
  for (int other = 0; other < kWarps; ++other) {
    if (other < warp) before += of_warps[other];
    total += of_warps[other];
  }
  return before;
}

// By a whole block: the columns that are open in some row tile of a group.
template <typename acc_t>
__device__ void list_columns(const Problem<acc_t>& problem, const Chunk<acc_t>& chunk, int group) {
  const int rows_of_group = group_tiles(problem), first_row = group * rows_of_group;
  const int columns = chunk.tiles.column_tiles;
  int* const list = open_columns(chunk, group);
  int count = 0, total;
  for (int first = 0; first < columns; first += kListThreads) {
    const int column = first + threadIdx.x;
    bool listed = false;
    for (int row = first_row; row < first_row + rows_of_group; ++row)
      if (column < columns && row < chunk.tiles.row_tiles)
        listed = listed || is_open(chunk, row, column);
    const int place = count + count_before(listed, total);
    if (listed) list[1 + place] = column;
    count += total;
  }
  if (threadIdx.x == 0) list[0] = count;
}

// Grid: the blocks of states_kernel, then a block per group of row tiles, of the chunk and of the
// rows behind.
template <typename acc_t>
__global__ void __launch_bounds__(kListThreads)
    lists_kernel(Problem<acc_t> problem, Chunk<acc_t> chunk, Chunk<acc_t> behind,
                 Verdicts verdicts) {
  const int tile_blocks = static_cast<int>(ceil_div(chunk.tiles.count(), kListThreads));
  const int groups = static_cast<int>(ceil_div(chunk.tiles.row_tiles, group_tiles(problem)));
  const int block = blockIdx.x, group = block - tile_blocks;
  if (group >= groups) {
    list_columns(problem, behind, group - groups);
    return;
  }
  if (group >= 0) {
    list_columns(problem, chunk, group);
    return;
  }
  int before = 0, total;
  for (int other = threadIdx.x; other < block; other += kListThreads)
    before += verdicts.open_counts[other];
  before = reduce_block<Sum>(before);
  const int index = block * kListThreads + threadIdx.x;
  bool listed = false;
  if (index < chunk.tiles.count()) {
    const PairTile tile = chunk.tiles.at(index);
    listed = is_open(chunk, tile.row, tile.column);
  }
  const int place = before + count_before(listed, total);
  if (listed) chunk.open[1 + place] = index;
  if (block == tile_blocks - 1 && threadIdx.x == 0) chunk.open[0] = before + total;
}

}  // namespace
}  // namespace pairloss::cuda
