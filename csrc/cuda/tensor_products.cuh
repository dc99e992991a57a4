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
// half of the warps make A, the others B. It walks over the columns in words of 32, those that have
// marks (marked_words.cuh), and copies the next word's planes while it works on one. 128 rows,
// because each column that is copied is then used by 128 x 64 products in three planes: with 64
// rows, an H100 would wait for its L2 cache.
//
// Tiles with rows that are not bounded are products_kernel's: here 0 is multiplied by what the rows
// hold.
#pragma once

#include "cuda/tensor_weights.cuh"

namespace pairloss::cuda {
namespace {

constexpr int kProductWarps = 8;            // that make A, and as many that make B
constexpr int kPanelSlices = 4;             // the most of a panel
constexpr int kSumSlice = kStepOctets * 8;  // classes of a slice, in bf16
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

// The class tile of sums[..][n].
template <int kRowTiles>
__device__ __forceinline__ int class_tile(int warp, int n) {
  return n * kRowTiles + warp % kRowTiles;
}

// Of a word, in each slice: of P' and L', or of P' alone, which is all that B needs.
template <bool kBoth, typename Factors>
constexpr int kSliceOctets = (kBoth ? 2 : 1) * Factors::kPlanes * kWordOctets;

// Two words of a panel.
template <bool kBoth, typename Factors>
constexpr size_t kProductSharedBytes =
    2 * kPanelSlices * kSliceOctets<kBoth, Factors> * sizeof(Octet);

// What a thread copies of a word: an octet of each slice, so that nearly all there is to compute is
// one address.
template <bool kBoth, typename Factors>
struct CopyShare {
  static constexpr int kOctets = kSliceOctets<kBoth, Factors>;
  static_assert(kOctets <= tensor_product_threads(kBoth));
  int octet;
  const Octet* source;  // of word 0
  int64_t tile_octets;  // from column tile to column tile
  int slices;           // of the panel; 0: the others have them all

  __device__ CopyShare(Octet* planes, int64_t first_tile, int all_slices, Range panel)
      : octet(threadIdx.x),
        source(Factors::block(planes, all_slices, first_tile, static_cast<int>(panel.begin)) +
               octet / kWordOctets * kPlaneOctets + octet % kWordOctets),
        tile_octets(keep(int64_t{all_slices} * Factors::kBlockOctets)),
        slices(octet < kOctets ? static_cast<int>(panel.end - panel.begin) : 0) {}

  // Sets out to copy it to stage = [kPanelSlices * kOctets].
  template <typename Stage>
  __device__ __forceinline__ void copy(int word, Stage& stage) const {
    const Octet* const from =
        source + word / kTileWords * tile_octets + word % kTileWords * kWordOctets;
#pragma unroll
    for (int slice = 0; slice < kPanelSlices; ++slice) {
      if (slice >= slices) break;
      copy_async(&stage[slice * kOctets + octet], from + slice * Factors::kBlockOctets);
    }
  }
};

// Adds a word of columns to the sums of the warp. lane_octets: where in a plane of the stage the
// lane points ldmatrix to, for even n and for odd n. An mma cuts off where it should round
// (mma.cuh), so each word begins with 0, and is added in float.
template <typename Factors, int kOctets, typename Weights, typename Stage>
__device__ __forceinline__ void add_word(const Problem<float>& problem, const Chunk<float>& chunk,
                                         const typename Weights::Share& share, const Stage& stage,
                                         const int (&lane_octets)[2], int class_tiles,
                                         const typename Weights::Marks& marks, int64_t word,
                                         Weights& weights, WarpSums<Weights::kRowTiles>& sums) {
  constexpr int kRowTiles = Weights::kRowTiles, kWeightPlanes = Weights::kWeightPlanes;
  constexpr int kPlanes = Factors::kPlanes;
  const int warp = threadIdx.x / kWarp;
  uint32_t a[kSteps][kRowTiles][kWeightPlanes][4];
  weights.expand(problem, chunk, share, marks, word, a);
#pragma unroll
  for (int n = 0; n < kPanelTiles / kRowTiles; ++n) {
    if (class_tile<kRowTiles>(warp, n) >= class_tiles) break;
    const int slice_octet = n * kRowTiles / kStepOctets * kOctets + lane_octets[n % 2];
    float of_word[kRowTiles][4] = {};
#pragma unroll
    for (int plane = kPlanes - 1; plane >= 0; --plane) {
      uint32_t b[2 * kSteps];
      load_matrices_transposed(b, &stage[slice_octet + plane * kWordOctets]);
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
  constexpr int kRowTiles = Weights::kRowTiles;
  using Copies = CopyShare<kBoth, Factors>;
  PAIRLOSS_DYNAMIC_SHARED(Octet, stage, [2][kPanelSlices * Copies::kOctets]);
  PAIRLOSS_SHARED(MarkedWord, found, [2][kBatchWords]);

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
  constexpr int kShareQuads = 16 * kRowTiles / kMicro;
  const int first_row = warp % kProductWarps / kRowTiles * (16 * kRowTiles);
  share.first_argument = warp >= kProductWarps;
  share.quads = keep(((1u << kShareQuads) - 1) << first_row / kMicro);
  share.row = first_tile * kTile + first_row;
  share.g = lane / 4;
  share.t = lane % 4;

  Weights weights(problem, chunk, share);
  WarpSums<kRowTiles> sums = {};
  MarkedWords<kBoth, decltype(found)> words(list, span, first_tile, found);

  const Copies copies(columns.sum_planes, chunk.first_column_tile, slices, panel);
  const auto copy = [&](const MarkedWord& word, int buffer) {
    if (word.word >= 0) copies.copy(word.word, stage[buffer]);
    commit_copies();
  };
  // In matrix lane / 8, which is half of a step.
  const int column = column_at(lane / 16, lane / 8 % 2 * 8 + lane % 8);
  int lane_octets[2];
#pragma unroll
  for (int n = 0; n < 2; ++n)
    lane_octets[n] = keep((share.first_argument ? kPlanes * kWordOctets : 0) +
                          plane_octet(column, class_tile<kRowTiles>(warp, n) % kStepOctets));

  const auto next_word = [&] { return words.next(problem, chunk, share.first_argument); };
  const auto load = [&](const MarkedWord& word) {
    return word.quads & share.quads ? weights.load(chunk, share, word.word)
                                    : typename Weights::Marks();
  };

  MarkedWord word = next_word();
  auto marks = load(word);
  copy(word, 0);
  for (int buffer = 0; word.word >= 0; buffer ^= 1) {
    wait_for_copies<0>();
    __syncthreads();  // the word has arrived for all threads, and that before it has been read
    const MarkedWord next = next_word();
    const auto next_marks = load(next);
    copy(next, buffer ^ 1);
    if (word.quads & share.quads)
      add_word<Factors, Copies::kOctets>(problem, chunk, share, stage[buffer], lane_octets,
                                         class_tiles, marks, word.word, weights, sums);
    word = next;
    marks = next_marks;
  }

  const float scale = weights.scale(problem);
  float* const to = share.first_argument ? chunk.a : chunk.b;
#pragma unroll
  for (int r = 0; r < WarpShare<kRowTiles>::kLaneRows; ++r) {
    const float row_sum = weights.row_sum(r);
    if (share.row >= chunk.rows) continue;
    const int64_t row = share.row_of_lane(r), tile = (chunk.first + row) / kTile;
    const int row_of_tile = static_cast<int>((chunk.first + row) % kTile);
    float* const of_row = to + (blockIdx.y * chunk.stride + row) * problem.classes;
    const auto class_at = [&](int of_panel, int c) {
      return (panel.begin * kStepOctets + of_panel) * kClassTile + 2 * share.t + c;
    };
    // All loads before the first store, for the compiler has to think that it changes what they
    // read.
    float own[kPanelTiles / kRowTiles][2] = {}, before[kPanelTiles / kRowTiles][2] = {};
#pragma unroll
    for (int n = 0; n < kPanelTiles / kRowTiles; ++n) {
      const int of_panel = class_tile<kRowTiles>(warp, n), half = of_panel % kStepOctets;
      if (of_panel >= class_tiles) break;
      const int slice = static_cast<int>(panel.begin) + of_panel / kStepOctets;
      const Octet* const first_plane = Factors::block(rows.sum_planes, slices, tile, slice) +
                                       (share.first_argument ? kPlanes * kPlaneOctets : 0);
      join<kPlanes>(first_plane + plane_octet(row_of_tile, half), share.t, own[n]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t k = class_at(of_panel, c);
        if (chunk.adds && k < problem.classes) before[n][c] = of_row[k];
      }
    }
#pragma unroll
    for (int n = 0; n < kPanelTiles / kRowTiles; ++n) {
      const int of_panel = class_tile<kRowTiles>(warp, n);
      if (of_panel >= class_tiles) break;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t k = class_at(of_panel, c);
        const float of_chunk = scale * fma(row_sum, own[n][c], -sums[r / 2][n][r % 2 * 2 + c]);
        if (k < problem.classes) of_row[k] = before[n][c] + of_chunk;
      }
    }
  }
}

}  // namespace
}  // namespace pairloss::cuda
