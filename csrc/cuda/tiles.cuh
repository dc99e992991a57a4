// The tiles of 64 x 64 pairs, how threads share one, and what is kept of them.
#pragma once

#include "cuda/pairs.cuh"

namespace pairloss::cuda {
namespace {

// Of row tile `row` with column tile `column` of the chunk.
struct PairTile {
  int row, column;
};

struct Share {
  int begin, end;
};

// Part `index` of `parts`, see part().
PAIRLOSS_HOST_DEVICE Share share(int count, unsigned index, unsigned parts) {
  const Range range = part(count, index, parts);
  return {static_cast<int>(range.begin), static_cast<int>(range.end)};
}

// The tiles of a chunk of rows. Within the batch, a tile and its mirror image are computed once:
// the columns are the chunk's rows and those behind them, and only tiles with row <= column are in
// the list.
struct PairTiles {
  int row_tiles = 0, column_tiles = 0;
  bool once = false;

  // Fits into an int: a chunk is bounded (see plan.cuh).
  PAIRLOSS_HOST_DEVICE int count() const {
    return once ? row_tiles * two_rows() / 2 : row_tiles * column_tiles;
  }

  // Row after row. With a list of once, row r and row_tiles - 1 - r make one row of two_rows()
  // tiles; without a partner, the middle row of an odd number is the end of the list.
  PAIRLOSS_HOST_DEVICE PairTile at(int index) const {
    const int width = once ? two_rows() : column_tiles;
    const int row = index / width, column = index % width;
    if (!once) return {row, column};
    if (column < column_tiles - row) return {row, row + column};
    return {row_tiles - 1 - row, row_tiles - 1 + column - column_tiles};
  }

  PAIRLOSS_HOST_DEVICE bool has_mirror(PairTile tile) const {
    return once && tile.row != tile.column;
  }

  // Whether the mirror image is of the rows behind the chunk.
  PAIRLOSS_HOST_DEVICE bool is_behind(PairTile tile) const { return tile.column >= row_tiles; }

 private:
  PAIRLOSS_HOST_DEVICE int two_rows() const { return 2 * column_tiles - row_tiles + 1; }
};

// The marks of 4 x 4 pairs are a word: those of (r, c) begin at bit 16 r + 4 c, first D_ij's. A
// quad is four rows or columns.
constexpr int kPairBits = 2 * kMarkBits, kRowBits = kMicro * kPairBits;
constexpr int kTileQuads = kTile / kMicro;
static_assert(kMicro * kRowBits == 64);

// The word of the mirror image: the marks of (c, r), D_ji's first.
PAIRLOSS_HOST_DEVICE uint64_t mirror(uint64_t word) {
  constexpr uint64_t kOddColumns = 0x0000f0f00000f0f0, kRightHalf = 0x00000000ff00ff00,
                     kFirst = 0x3333333333333333;
  const uint64_t by_one = (word >> 12 ^ word) & kOddColumns;
  word ^= by_one ^ by_one << 12;
  const uint64_t by_two = (word >> 24 ^ word) & kRightHalf;
  word ^= by_two ^ by_two << 24;
  return (word & kFirst) << kMarkBits | (word >> kMarkBits & kFirst);
}

// How the threads of a block share a tile: each has kQuads words of 4 x 4 pairs in the same four
// rows. Lanes whose numbers differ in the bits kRowLanes alone have the same rows, those that
// differ in kColumnLanes the same columns; a row's pairs are spread over kRowParts such groups of
// lanes.

// In FMA: 16 x 16 threads.
struct FmaLayout {
  static constexpr int kThreads = kTileQuads * kTileQuads, kQuads = 1;
  static constexpr int kRowLanes = 15, kColumnLanes = 16, kRowParts = 1, kColumnParts = 8;
  static constexpr bool kTellsFull = false;  // see add_level()

  static __device__ int row_quad() { return threadIdx.x / kTileQuads; }
  static __device__ int column_quad(int) { return threadIdx.x % kTileQuads; }
  static __device__ int row_part() { return 0; }
  static __device__ int column_part() { return threadIdx.x / 32; }
};

// On tensor cores: 2 x 2 warps of 32 x 32 pairs. With the rows and columns of the fragments in this
// order (see tensor_divergences.cuh), a thread's accumulators are whole words.
struct TensorLayout {
  static constexpr int kThreads = 128, kQuads = 2;
  static constexpr int kRowLanes = 3, kColumnLanes = 28, kRowParts = 2, kColumnParts = 2;
  static constexpr bool kTellsFull = true;

  static __device__ int warp_row() { return threadIdx.x / 64; }
  static __device__ int warp_column() { return threadIdx.x / 32 % 2; }
  static __device__ int row_quad() { return warp_row() * 8 + threadIdx.x % 32 / 4; }
  // Of the eight of a warp, the one that lanes with lane % 4 = t have as their first or second.
  // In this order ldmatrix meets no bank conflict (see plane_octet()).
  static __device__ int quad_of_warp(int t, int quad) { return t / 2 * 4 + quad * 2 + t % 2; }
  static __device__ int column_quad(int quad) {
    return warp_column() * 8 + quad_of_warp(threadIdx.x % 4, quad);
  }
  static __device__ int row_part() { return warp_column(); }
  static __device__ int column_part() { return warp_row(); }
};

// ---- what is kept ------------------------------------------------------------------------------

// Over pairs in both directions, without the level's scale. Every pair of the batch is in it twice.
struct LevelSums {
  double similar, dissimilar;
  unsigned long long active;  // dissimilar pairs
};

// Of tiles that are not open, the marks of all pairs are known. They add nothing, and are skipped;
// or they are closed (closed_forms.cuh): all pairs are of the same kind in each level, and those
// that are dissimilar all inside or all beyond the margin.
enum class TileState : uint8_t { open, skipped, inside, beyond };

// Rows first .. first + rows of the problem, and the partial results about them. Within the batch
// there are two for every chunk of rows: one is of its rows, which meet the columns from `first`
// on; the other is of those behind them, which meet the chunk's: the mirror images of its tiles.
template <typename acc_t>
struct Chunk {
  int64_t first = 0, rows = 0;
  int64_t stride = 0;  // rows of the largest chunk, a multiple of kTile
  PairTiles tiles;
  int product_splits = 0, class_parts = 1;
  int first_column_tile = 0;        // of the problem; everything here counts columns from it
  bool adds = false;                // to a and b, which earlier chunks have written
  acc_t* partial = nullptr;         // divergences in parts, see divergences.cuh; null with one part
  acc_t* loss = nullptr;            // (column tiles, stride) of the rows, see has_pair()
  LevelSums* level_sums = nullptr;  // (blocks, warps, G), or null
  uint64_t* marks = nullptr;        // see marks_index(); null without a gradient
  acc_t* a = nullptr;               // (product_splits, stride, K)
  acc_t* b = nullptr;               // (product_splits, stride, K)

  // Which tiles are open, see open_tiles.cuh; null without certificates: all of them.
  TileState* states = nullptr;  // (row tiles, column tiles)
  int* open = nullptr;          // how many, then the index of each for PairTiles::at()
  int* open_columns = nullptr;  // by groups of row tiles: how many, then the column tiles

  PAIRLOSS_HOST_DEVICE int64_t first_column() const { return int64_t{first_column_tile} * kTile; }
};
// With more, the FMA kernels spill.
static_assert(sizeof(Chunk<float>) <= 128);

// Of a chunk's marks. stride: the chunk's.
PAIRLOSS_HOST_DEVICE int64_t marks_index(int64_t stride, int level_count, int level,
                                         int64_t column_quad, int64_t row_quad) {
  return (column_quad * level_count + level) * (stride / kMicro) + row_quad;
}

// What the losses kernels write of the rows behind a chunk: marks, loss and stride of that Chunk.
template <typename acc_t>
struct Behind {
  uint64_t* marks = nullptr;
  acc_t* loss = nullptr;
  int64_t stride = 0;
};

// The open tiles: their number, and the index of each.
template <typename acc_t>
__device__ int open_count(const Chunk<acc_t>& chunk) {
  return chunk.open != nullptr ? chunk.open[0] : chunk.tiles.count();
}

template <typename acc_t>
__device__ int open_index(const Chunk<acc_t>& chunk, int number) {
  return chunk.open != nullptr ? chunk.open[1 + number] : number;
}

// row: a tile of the chunk. Of a tile that is not open, nothing has written losses or marks.
template <typename acc_t>
__device__ bool is_open(const Chunk<acc_t>& chunk, int row, int column) {
  return chunk.states == nullptr ||
         chunk.states[int64_t{row} * chunk.tiles.column_tiles + column] == TileState::open;
}

// A row of Chunk::open_columns is for the row tiles of a block of the products. tensor: on tensor
// cores.
PAIRLOSS_HOST_DEVICE int group_tiles(bool tensor) {
  constexpr int kTensorGroup = 2;  // see tensor_products.cuh
  return tensor ? kTensorGroup : 1;
}

template <typename acc_t>
PAIRLOSS_HOST_DEVICE int group_tiles(const Problem<acc_t>& problem) {
  return group_tiles(problem.rows.planes != nullptr);
}

template <typename acc_t>
PAIRLOSS_HOST_DEVICE int* open_columns(const Chunk<acc_t>& chunk, int64_t group) {
  return chunk.open_columns + group * (1 + chunk.tiles.column_tiles);
}

// Whether the FMA kernels have the tile, and not those for tensor cores: 0 * inf must be 0.
template <typename acc_t>
__device__ bool is_for_fma(const Problem<acc_t>& problem, const Chunk<acc_t>& chunk,
                           PairTile tile) {
  return problem.rows.planes == nullptr ||
         problem.rows.tile_unbounded[chunk.first / kTile + tile.row] ||
         problem.columns.tile_unbounded[chunk.first_column_tile + tile.column];
}

template <typename acc_t>
__device__ bool none_is_for_fma(const Problem<acc_t>& problem) {
  return problem.rows.planes != nullptr && *problem.extrema.some_unbounded == 0;
}

}  // namespace
}  // namespace pairloss::cuda
