// The sums of products.cuh on tensor cores:
//
//   A_i = r_i L'_i - (G L')_i,  r_i = sum_j g_ij      B_i = c_i P'_i - (G^T P')_i,  c_i = sum_j
//   g_ji
//
// with the rows relative to a reference row (planes.cuh), without which these differences of sums
// would cancel where the rows are nearly equal. P' and L' are n bf16 each, three for float32
// accuracy (precision.cuh). Where all pairs weigh the same, g is exact in bf16, and n products make
// G L'; else g is n bf16 too, and of the n^2 products those of split.cuh are made
// (tensor_weights.cuh).
//
// A block has 128 rows and a panel of up to 64 classes, of which a warp has 32 x 32 or 16 x 64;
// half of the warps make A, the others B. It walks over the columns 32 at a time, a word, and
// copies the next word's planes while it works on one. 128 rows, because each column that is copied
// is then used by 128 x 64 products in three planes: with 64 rows, an H100 would wait for its L2
// cache.
//
// Tiles with rows that are not bounded are products_kernel's: here 0 is multiplied by what the rows
// hold.
#pragma once

#include "cuda/tensor_weights.cuh"

namespace pairloss::cuda {
namespace {

constexpr int kProductRows = 128, kProductWarps = 8;  // that make A, and as many that make B
constexpr int kPanelSlices = 4;                       // the most of a panel
constexpr int kSumSlice = kStepOctets * 8;            // classes of a slice, in bf16
constexpr int kClassTile = 8, kPanelTiles = kPanelSlices * kSumSlice / kClassTile;
constexpr int kWordOctets = kStaged * kStepOctets;  // of one plane and slice

PAIRLOSS_HOST_DEVICE constexpr int tensor_product_threads(bool both) {
  return kProductWarps * (both ? 2 : 1) * kWarp;
}

// Row blocks x panels.
PAIRLOSS_HOST_DEVICE int64_t tensor_product_blocks(int64_t rows, int64_t classes) {
  return ceil_div(rows, kProductRows) * ceil_div(classes, kPanelSlices * kSumSlice);
}

// The sums of a warp: 16 rows x 8 classes of each, as an mma adds to them. A warp has all class
// tiles of the panel for 16 rows, or every second one for 32.
template <int kRowTiles>
using WarpSums = float[kRowTiles][kPanelTiles / kRowTiles][4];
static_assert(kProductRows == 16 * kProductWarps);
static_assert(kProductRows == 2 * kTile);  // see group_tiles()

// The class tile of sums[..][n].
template <int kRowTiles>
__device__ __forceinline__ int class_tile(int warp, int n) {
  return n * kRowTiles + warp % kRowTiles;
}

// The planes of the word of columns from `column` on, in a panel. stage: (2 buffers, slices x
// planes x kWordOctets).
template <typename Factors, int kPlanesUsed, typename Stage>
__device__ __forceinline__ void copy_word(Stage& stage, int buffer, const Side<float>& columns,
                                          int slices, Range panel, int64_t column) {
  const Octet* const from =
      Factors::block(columns.sum_planes, slices, column / kTile, static_cast<int>(panel.begin)) +
      column % kTile * kStepOctets;
  const int octets = static_cast<int>(panel.end - panel.begin) * kPlanesUsed * kWordOctets;
  for (int e = threadIdx.x; e < octets; e += blockDim.x) {
    const int plane = e / kWordOctets, slice = plane / kPlanesUsed;
    copy_async(&stage[buffer][e], from + slice * Factors::kBlockOctets +
                                      plane % kPlanesUsed * kPlaneOctets + e % kWordOctets);
  }
}

// Adds a word of columns to the sums of the warp. An mma cuts off where it should round (mma.cuh),
// so each word begins with 0, and is added in float.
template <typename Factors, int kPlanesUsed, typename Weights, typename Stage>
__device__ __forceinline__ void add_word(const Problem<float>& problem, const Chunk<float>& chunk,
                                         const typename Weights::Share& share, const Stage& stage,
                                         int buffer, int class_tiles, const Words& words,
                                         int64_t word, Weights& weights,
                                         WarpSums<Weights::kRowTiles>& sums) {
  constexpr int kRowTiles = Weights::kRowTiles, kWeightPlanes = Weights::kWeightPlanes;
  constexpr int kPlanes = Factors::kPlanes;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  // The column that the lane points ldmatrix to: in matrix lane / 8, which is half of a step.
  const int column = column_at(lane / 16, lane / 8 % 2 * 8 + lane % 8);
  const int first_plane = share.first_argument ? kPlanes : 0;
  uint32_t a[kSteps][kRowTiles][kWeightPlanes][4];
  weights.expand(problem, chunk, share, words, word, a);
#pragma unroll
  for (int n = 0; n < kPanelTiles / kRowTiles; ++n) {
    const int tile = class_tile<kRowTiles>(warp, n);
    if (tile >= class_tiles) break;
    float of_word[kRowTiles][4] = {};
#pragma unroll
    for (int plane = kPlanes - 1; plane >= 0; --plane) {
      const int of_stage = tile / kStepOctets * kPlanesUsed + first_plane + plane;
      uint32_t b[2 * kSteps];
      load_matrices_transposed(
          b, &stage[buffer][of_stage * kWordOctets + plane_octet(column, tile % kStepOctets)]);
#pragma unroll
      for (int w = 0; w < kWeightPlanes && w + plane < kPlanes; ++w) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i)
            mma_m16n8k16(of_word[i], a[step][i][w], b[2 * step], b[2 * step + 1]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][n][e] += of_word[i][e];
    }
  }
}

// What the planes hold of classes 2t and 2t + 1 of an octet.
template <int kPlanes>
__device__ __forceinline__ void join(const Octet* first_plane, int t, float (&values)[2]) {
  values[0] = values[1] = 0.0f;
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    const uint32_t pair = first_plane[plane * kPlaneOctets].words[t];
    values[0] += from_bfloat16(pair & 0xffff);
    values[1] += from_bfloat16(pair >> 16);
  }
}

// Grid (tensor_product_blocks() of the chunk's rows, product_splits), the row blocks of a panel in
// a row: blocks that run at the same time then read the same planes. Writes the chunk's a (kBoth)
// and b, or adds to them.
template <bool kBoth, typename Weights, typename Factors>
__global__ void __launch_bounds__(tensor_product_threads(kBoth), kBoth ? 1 : 2)
    tensor_products_kernel(Problem<float> problem, Chunk<float> chunk) {
  static_assert(std::is_same_v<typename Factors::Part, Bfloat16> && Factors::kSlice == kSumSlice);
  constexpr int kPlanes = Factors::kPlanes;
  constexpr int kPlanesUsed = kBoth ? 2 * kPlanes : kPlanes;  // B needs P' alone
  constexpr int kRowTiles = Weights::kRowTiles;
  PAIRLOSS_SHARED(Octet, stage, [2][kPanelSlices * kPlanesUsed * kWordOctets]);

  const Side<float>&rows = problem.rows, &columns = problem.columns;
  const int slices = Factors::slices(problem.classes);
  const unsigned row_blocks = static_cast<unsigned>(ceil_div(chunk.rows, kProductRows));
  const Range panel = part(slices, blockIdx.x / row_blocks, gridDim.x / row_blocks);
  const int class_tiles = static_cast<int>(panel.end - panel.begin) * (kSumSlice / kClassTile);
  const int64_t first_tile = int64_t{blockIdx.x % row_blocks} * (kProductRows / kTile);
  const WordList list = list_words(problem, chunk, first_tile);
  const Range span = part(list.count, blockIdx.y, chunk.product_splits);
  if (chunk.adds && span.begin == span.end) return;

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  typename Weights::Share share;
  share.first_argument = warp >= kProductWarps;
  share.row = int64_t{blockIdx.x % row_blocks} * kProductRows +
              warp % kProductWarps / kRowTiles * (16 * kRowTiles);
  share.exists = share.row < chunk.rows && !rows.tile_unbounded[(chunk.first + share.row) / kTile];
  share.states = chunk.states == nullptr
                     ? nullptr
                     : chunk.states + share.row / kTile * chunk.tiles.column_tiles;
  share.g = lane / 4;
  share.t = lane % 4;

  Weights weights(problem, share, chunk.first);
  WarpSums<kRowTiles> sums = {};

  // The first word of the list from here on in which some warp has marks, or span.end. By all
  // threads.
  const auto find_word = [&](int64_t word, Words& words) {
    for (; word < span.end; ++word) {
      words = load_words(problem, chunk, share, list, word, span.end);
      if (__syncthreads_or(words.any())) return word;
    }
    return span.end;
  };
  const auto copy = [&](int64_t word, int buffer) {
    if (word < span.end)
      copy_word<Factors, kPlanesUsed>(stage, buffer, columns, slices, panel,
                                      chunk.first_column() + list.word(word) * kStaged);
    commit_copies();
  };

  Words words, next_words;
  int64_t word = find_word(span.begin, words);
  copy(word, 0);
  int64_t next = find_word(word + 1, next_words);
  for (int buffer = 0; word < span.end; buffer ^= 1) {
    copy(next, buffer ^ 1);
    Words words_behind = load_words(problem, chunk, share, list, next + 1, span.end);
    wait_for_copies<1>();
    __syncthreads();  // all threads' copies of this word are there
    // Without marks there is nothing to add, or it is not for this kernel.
    if (__any_sync(kAllLanes, words.any()))
      add_word<Factors, kPlanesUsed>(problem, chunk, share, stage, buffer, class_tiles, words,
                                     list.word(word), weights, sums);
    // Also the barrier behind which the buffer has been read.
    const bool any_behind = __syncthreads_or(words_behind.any());
    word = next;
    words = next_words;
    next = any_behind ? next + 1 : find_word(next + 2, words_behind);
    next_words = words_behind;
  }

  const float scale = weights.scale(problem);
  float* const to = share.first_argument ? chunk.a : chunk.b;
#pragma unroll
  for (int r = 0; r < WarpShare<kRowTiles>::kLaneRows; ++r) {
    const float row_sum = weights.row_sum(r);
    if (share.row >= chunk.rows) continue;
    const int64_t row = share.row_of_lane(r), tile = (chunk.first + row) / kTile;
    const int row_of_tile = static_cast<int>((chunk.first + row) % kTile);
#pragma unroll
    for (int n = 0; n < kPanelTiles / kRowTiles; ++n) {
      const int of_panel = class_tile<kRowTiles>(warp, n), half = of_panel % kStepOctets;
      if (of_panel >= class_tiles) break;
      const int slice = static_cast<int>(panel.begin) + of_panel / kStepOctets;
      const Octet* const first_plane = Factors::block(rows.sum_planes, slices, tile, slice) +
                                       (share.first_argument ? kPlanes * kPlaneOctets : 0);
      float own[2];
      join<kPlanes>(first_plane + plane_octet(row_of_tile, half), share.t, own);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t k = int64_t{slice} * kSumSlice + half * kClassTile + 2 * share.t + c;
        if (k >= problem.classes) continue;
        float& sum = to[(blockIdx.y * chunk.stride + row) * problem.classes + k];
        const float of_chunk = scale * fma(row_sum, own[c], -sums[r / 2][n][r % 2 * 2 + c]);
        sum = chunk.adds ? sum + of_chunk : of_chunk;
      }
    }
  }
}

}  // namespace
}  // namespace pairloss::cuda
