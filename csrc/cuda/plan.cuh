// How the work is cut, and the memory for it. Depends on the sizes alone, never on the GPU: so do
// the bits of the result.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/closed_forms.cuh"
#include "cuda/losses.cuh"
#include "cuda/open_tiles.cuh"
#include "cuda/precision.cuh"
#include "cuda/prepare.cuh"
#include "cuda/products.cuh"
#include "cuda/results.cuh"
#include "cuda/tensor_products.cuh"

namespace pairloss::cuda {
namespace {

// Enough blocks to fill any GPU a few times over, few enough to keep the partial sums of
// divergences near 16 MB, and those of the products near 16 MB or, on tensor cores, 32 MB.
constexpr int64_t kPairBlocks = 2048;
constexpr int64_t kPartBlocks = 512;
constexpr int64_t kProductThreads = 512 * 256;
constexpr int64_t kTensorProductBlocks = 512;
constexpr int64_t kCountBlocks = 4096;
constexpr int kSumThreads = 256;

// A grid of products_kernel has so many panels at most.
constexpr int64_t kMostClasses = int64_t{65535} * kNarrowPanel;

// One pass over the pairs: of all rows with all columns.
struct Plan {
  int64_t rows, columns, classes;
  int levels;
  bool tensor = false;                    // on tensor cores, but for tiles with unbounded rows
  Precision precision = Precision::fp32;  // of these
  bool once = false;                      // a tile and its mirror image in one
  int64_t chunk_rows = 0;
  int pair_blocks = 0, product_splits = 0, class_parts = 1;
  int panel = 0, panels = 0;
  bool equal_weights = false;  // of the pairs, in the gradient
  bool certified = false;      // tiles that are certain are not looked at

  int64_t row_tiles() const { return ceil_div(chunk_rows, kTile); }
  // Of a chunk.
  PairTiles tiles(int64_t rows_of_chunk, int64_t first) const {
    const int64_t meets = once ? columns - first : columns;
    return {static_cast<int>(ceil_div(rows_of_chunk, kTile)),
            static_cast<int>(ceil_div(meets, kTile)), once};
  }
  // Rows behind the first chunk that meet its rows again, in whole tiles.
  int64_t rows_behind() const { return once ? ceil_div(rows, kTile) * kTile - chunk_rows : 0; }
  // Whether row losses have a kernel of their own. Of few tiles it would take longer to launch.
  bool sums_row_losses() const {
    constexpr int64_t kFewTiles = 128;
    return rows_behind() > 0 || ceil_div(columns, kTile) > kFewTiles;
  }
  // Of the FMA kernel, and of the one for tensor cores.
  int64_t fma_warps() const { return pair_blocks * FmaLayout::kThreads / kWarp; }
  int64_t tensor_warps() const { return tensor ? pair_blocks * TensorLayout::kThreads / kWarp : 0; }
  // Partial sums of each level, those of the closed tiles last.
  int64_t closed_slots() const {
    return certified ? ceil_div(rows, kTile) * closed_parts(classes) : 0;
  }
  int64_t level_slots() const { return fma_warps() + tensor_warps() + closed_slots(); }
};

// Marks and partial sums of a chunk are bounded. A batch whose marks take at most 128 MB is one
// chunk; else there are as few chunks as may be, because each reads and writes the sums of all rows
// behind it, and all are of one size, because the rows behind the first share a GPU only if they
// are many.
inline int64_t default_chunk_rows(int64_t rows_of_all, int64_t columns, int64_t classes, int levels,
                                  bool within) {
  constexpr int64_t kPairs = int64_t{1} << 28;  // with marks for all levels: 128 MB
  if (within && rows_of_all * columns * levels <= kPairs) return rows_of_all;
  constexpr int64_t kElements = int64_t{1} << 24;  // of a, and of b, per split
  constexpr int64_t kMostRows = int64_t{1} << 20;  // row tiles times columns fit into an int
  const int64_t rows = std::min({kPairs / columns / levels, kElements / classes, kMostRows});
  const int64_t most = std::max<int64_t>(rows / kTile * kTile, kTile);
  if (!within) return most;
  const int64_t chunks = ceil_div(rows_of_all, most);
  return ceil_div(ceil_div(rows_of_all, chunks), kTile) * kTile;
}

// Into how many parts the columns are cut for the products.
inline int64_t product_splits(const Plan& plan) {
  const int64_t words = ceil_div(plan.columns, kStaged);
  if (!plan.tensor) {
    const int64_t threads = product_threads(plan.panel) * plan.panels * plan.row_tiles();
    return std::min(ceil_div(kProductThreads, threads), words);
  }
  // A block begins by waiting for its first words.
  constexpr int64_t kLeastWords = 4;
  const int64_t blocks = tensor_product_blocks(plan.chunk_rows, plan.classes);
  return std::min(ceil_div(kTensorProductBlocks, blocks), ceil_div(words, kLeastWords));
}

template <typename acc_t>
Plan make_plan(const Problem<acc_t>& problem, bool tensor, int64_t chunk_rows) {
  const int64_t rows = problem.rows.rows, columns = problem.columns.rows;
  const int64_t classes = problem.classes;
  Plan plan{rows, columns, classes, problem.level_count, tensor};
  // A block of the products has rows of the chunk or of those behind it, not of both.
  const int64_t step = tensor ? kProductRows : kTile;
  plan.chunk_rows = std::min(ceil_div(chunk_rows, step) * step, ceil_div(rows, kTile) * kTile);
  plan.once = problem.within;
  // A wide panel shares the expanded weights among more classes, a narrow one wastes fewer threads
  // on classes that do not exist. float64 is for tests: one instance will do, and a wide one would
  // not fit into shared memory.
  plan.panel =
      std::is_same_v<acc_t, double> || classes <= 3 * kNarrowPanel ? kNarrowPanel : kWidePanel;
  plan.panels = static_cast<int>(ceil_div(classes, plan.panel));
  const int64_t tiles = plan.tiles(plan.chunk_rows, 0).count();
  plan.pair_blocks = static_cast<int>(std::min(kPairBlocks, tiles));
  plan.product_splits = static_cast<int>(product_splits(plan));
  // Too few tiles to fill a GPU, and classes enough to share: each block takes a part of them.
  constexpr int64_t kFewTiles = kPartBlocks / 2, kLeastClasses = 4 * kStep;
  if (tiles <= kFewTiles && classes >= 4 * kLeastClasses)
    plan.class_parts =
        static_cast<int>(std::min(kPartBlocks / tiles, ceil_div(classes, kLeastClasses)));
  return plan;
}

// The tiles that the pairs are counted in: small ones are done sooner, but of large batches there
// would be too many.
inline PairTiles count_tiles(int64_t rows, int64_t columns, bool within) {
  constexpr int64_t kLeastRows = 16, kLeastColumns = 128, kParts = 64;
  const int64_t row_parts = ceil_div(rows, kLeastRows);
  if (within) {
    const int parts = static_cast<int>(std::min(row_parts, kParts));
    return {parts, parts, true};
  }
  const int64_t column_parts =
      std::min(ceil_div(columns, kLeastColumns), std::max(kParts, kCountBlocks / row_parts));
  return {static_cast<int>(std::min(row_parts, kCountBlocks / column_parts)),
          static_cast<int>(column_parts), false};
}

// Four classes per thread keep short rows to a warp.
inline int row_threads(int64_t classes) {
  return static_cast<int>(std::clamp<int64_t>(ceil_div(classes, 4 * kWarp) * kWarp, kWarp, 256));
}

// Of planes_kernel, where a thread has eight classes of a row: not more than a row has use for, up
// to a warp; beyond, a block has the row.
struct RowThreads {
  int of_row, of_block;
};

inline RowThreads plane_threads(int64_t classes) {
  constexpr int kMostThreads = 128;
  const int64_t octets = ceil_div(classes, kSplitClasses);
  if (octets > kWarp) return {row_threads(classes), row_threads(classes)};
  int of_row = 1;
  while (of_row < octets) of_row *= 2;
  return {of_row, std::min(kTile * of_row, kMostThreads)};
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

// Whether certificates are worth their price, which is a few instructions per pair for the bounds
// and eight launches (docs/cuda.md). Like rows make whole tiles in large batches only.
inline bool is_certified(int64_t rows, int64_t columns, int64_t classes) {
  constexpr int64_t kLeastRows = 4096, kLeastWork = int64_t{1} << 29;
  return std::min(rows, columns) >= kLeastRows && std::max(rows, columns) < kMostOrderedRows &&
         rows * columns * classes >= kLeastWork;
}

// side: as the caller has it. Afterwards it is in the order of the positions.
template <typename acc_t>
Ordering<acc_t> take_ordering(Workspace& workspace, int level_count, Side<acc_t>& side) {
  Ordering<acc_t> ordering{side.rows, side.labels, side.weights, side.upstream};
  ordering.keys = workspace.take<uint64_t>(side.rows);
  ordering.sorted_keys = workspace.take<uint64_t>(side.rows);
  side.given_row = ordering.row = workspace.take<int>(side.rows);
  side.labels = ordering.labels = workspace.take<int64_t>(side.rows * level_count);
  if (side.weights != nullptr) side.weights = ordering.weights = workspace.take<acc_t>(side.rows);
  if (side.upstream != nullptr)
    side.upstream = ordering.upstream = workspace.take<acc_t>(side.rows);
  return ordering;
}

template <typename acc_t>
void take_summaries(Workspace& workspace, int64_t classes, int level_count, Side<acc_t>& side) {
  const int64_t tiles = ceil_div(side.rows, kTile);
  side.summaries.least = workspace.take<acc_t>(tiles * classes);
  side.summaries.greatest = workspace.take<acc_t>(tiles * classes);
  side.summaries.labels = workspace.take<LabelSet>(tiles * level_count);
  side.summaries.kind = workspace.take<TileKind>(tiles);
  side.summaries.row_sums = workspace.take<RowSums>(tiles);
  side.summaries.sums = workspace.take<TileSums>(tiles * classes);
}

template <typename acc_t>
void take_side(Workspace& workspace, int64_t classes, bool tensor, Precision precision,
               Side<acc_t>& side) {
  side.p = workspace.take<acc_t>(side.rows * classes);
  side.log_p = workspace.take<acc_t>(side.rows * classes);
  side.unbounded = workspace.take<int>(side.rows);
  if (!tensor) return;
  const int64_t tiles = ceil_div(side.rows, kTile);
  dispatch_precision(precision, [&](auto mode) {
    using Mode = decltype(mode);
    const auto take_planes = [&](auto factors) {
      return workspace.take<Octet>(tiles * factors.slices(classes) * factors.kBlockOctets);
    };
    side.sum_planes = side.planes = take_planes(typename Mode::Factors());
    if (!kSharedPlanes<Mode>) side.sum_planes = take_planes(typename Mode::SumFactors());
  });
  side.h = workspace.take<float>(tiles * kTile);
  side.q = workspace.take<float>(tiles * kTile);
  side.tile_unbounded = workspace.take<int>(tiles);
}

inline Extrema take_extrema(Workspace& workspace, int64_t classes) {
  Extrema extrema;
  extrema.least_p = workspace.take<int>(classes);
  extrema.greatest_log_p = workspace.take<int>(classes);
  extrema.some_unbounded = workspace.take<int>(1);
  extrema.first_row = workspace.take<unsigned long long>(1);
  return extrema;
}

template <typename acc_t>
Verdicts take_open_tiles(Workspace& workspace, const Plan& plan, Chunk<acc_t>& chunk,
                         Chunk<acc_t>& behind) {
  const PairTiles& tiles = chunk.tiles;
  const int64_t all = int64_t{tiles.row_tiles} * tiles.column_tiles;
  const int64_t tiles_behind = plan.rows_behind() / kTile,
                all_behind = tiles_behind * tiles.row_tiles;
  Verdicts verdicts;
  verdicts.of_rows = workspace.take<uint8_t>(all);
  verdicts.of_columns = workspace.take<uint8_t>(plan.once ? all_behind : all);
  verdicts.open_counts = workspace.take<int>(ceil_div(tiles.count(), kListThreads));
  chunk.states = workspace.take<TileState>(all);
  chunk.open = workspace.take<int>(1 + int64_t{tiles.count()});
  // By the plan: while the workspace is only measured, the problem has no planes yet.
  const int of_group = group_tiles(plan.tensor);
  chunk.open_columns =
      workspace.take<int>(ceil_div(tiles.row_tiles, of_group) * (1 + tiles.column_tiles));
  behind.states = workspace.take<TileState>(all_behind);
  behind.open_columns =
      workspace.take<int>(ceil_div(tiles_behind, of_group) * (1 + tiles.row_tiles));
  return verdicts;
}

template <typename acc_t>
ClosedForms take_closed_forms(Workspace& workspace, const Plan& plan, const Chunk<acc_t>& chunk) {
  ClosedForms closed;
  const int64_t tiles = ceil_div(plan.rows, kTile);
  closed.rows = workspace.take<ClosedSums>(tiles);
  closed.sums = workspace.take<TileSums>(tiles * plan.classes);
  if (chunk.level_sums != nullptr)
    closed.level_sums = chunk.level_sums + (plan.level_slots() - plan.closed_slots()) * plan.levels;
  return closed;
}

template <typename acc_t>
Chunk<acc_t> take_chunk(Workspace& workspace, const Plan& plan, bool both, bool with_sums,
                        bool with_grad) {
  Chunk<acc_t> chunk;
  chunk.stride = plan.chunk_rows;
  chunk.tiles = plan.tiles(plan.chunk_rows, 0);
  chunk.product_splits = plan.product_splits;
  chunk.class_parts = plan.class_parts;
  if (plan.class_parts > 1)
    chunk.partial = workspace.take<acc_t>(plan.class_parts * chunk.tiles.count() * kTileElements);
  chunk.loss = workspace.take<acc_t>(chunk.tiles.column_tiles * plan.chunk_rows);
  if (with_sums) chunk.level_sums = workspace.take<LevelSums>(plan.level_slots() * plan.levels);
  if (!with_grad) return chunk;
  chunk.marks = workspace.take<uint64_t>(int64_t{chunk.tiles.column_tiles} * kTileQuads *
                                         plan.levels * (plan.chunk_rows / kMicro));
  const int64_t partials = plan.product_splits * plan.chunk_rows * plan.classes;
  if (both) chunk.a = workspace.take<acc_t>(partials);
  chunk.b = workspace.take<acc_t>(partials);
  return chunk;
}

// What the rows behind the chunks need; nothing where there are none.
template <typename acc_t>
Chunk<acc_t> take_behind(Workspace& workspace, const Plan& plan, bool both, bool with_grad,
                         EarlierSums<acc_t>& sums) {
  Chunk<acc_t> behind;
  behind.stride = plan.rows_behind();
  if (behind.stride == 0) return behind;
  behind.product_splits = 1;  // there are rows enough
  behind.loss = workspace.take<acc_t>(plan.row_tiles() * behind.stride);
  if (!with_grad) return behind;
  behind.marks =
      workspace.take<uint64_t>(plan.chunk_rows / kMicro * plan.levels * (behind.stride / kMicro));
  if (both) sums.a = workspace.take<acc_t>(behind.stride * plan.classes);
  sums.b = workspace.take<acc_t>(behind.stride * plan.classes);
  return behind;
}

}  // namespace
}  // namespace pairloss::cuda
