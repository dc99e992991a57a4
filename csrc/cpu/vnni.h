// Vector Neural Network Instructions: products of 16-bit integers, two at a time, summed in 32
// bits. Twice the multiply-adds of AVX-512's floats per instruction, at a precision that is too low
// for the loss, but tells of nearly every pair on which side of the margin it is:
//
//   P_ik ~ p a_ik,    p = 1 / 32767
//   L_jk ~ l_j b_jk,  l_j = max_k |L_jk| / 32767          a, b integers
//   E_ij = sum_k P_ik L_jk ~ p l_j sum_k a_ik b_jk
//
// P sums to 1, so the sum of integers stays below 2^31, and is off by at most
//
//   l_j / 2 + p / 2 sum_k |L_jk|
//
// beside roundings in float. Pairs that are closer to the margin than this are decided in float.
// Where K is small there is little to gain, and where it is large the second term is as wide as the
// divergences of a batch are spread.
#pragma once

#if defined(PAIRLOSS_VNNI)
namespace pairloss::cpu::PAIRLOSS_ISA {

struct IntegerTiles : VectorTiles<float> {
  static constexpr int64_t kLeastClasses = 32, kMostClasses = 1024;
  static constexpr int64_t kColumns = kColumnBlock<float>;  // of a block
  // Pairs of classes whose share of one column block (32 KiB) stays in the first-level cache.
  static constexpr int64_t kPairsAtOnce = 256;
  static constexpr float kScale = 1.0f / 32767;

  bool coarse;     // else in float throughout
  int64_t pairs;   // of classes
  int64_t stride;  // the same, padded to whole vectors
  uint32_t* a;     // [row][pair], a row every `stride`
  uint32_t* b;     // [block of columns][pair][column]
  float* scale;    // per column: p l_j
  float* unclear;  // per column: sums closer to the threshold than this decide nothing

  IntegerTiles(const Panels<float>& panels, double margin, Certifies certifies)
      : VectorTiles<float>(panels, margin, certifies),
        coarse(uses<Idea::coarse_first> && panels.k >= kLeastClasses && panels.k <= kMostClasses),
        pairs((panels.k + 1) / 2),
        stride(round_up(pairs, 16)) {}

  int64_t scores_size(int64_t tile) const {
    if (!coarse) return VectorTiles<float>::scores_size(tile);
    return pairs > kPairsAtOnce ? tile * tile : 0;
  }

  void lay_out(Arena& arena) {
    if (!coarse) return VectorTiles<float>::lay_out(arena);
    lay_out_bounds(arena);
    a = arena.take<uint32_t>(panels.rows * stride);
    b = arena.take<uint32_t>(panels.rows * pairs);
    scale = arena.take<float>(panels.rows);
    unclear = arena.take<float>(panels.rows);
  }

  void pack(int64_t row) {
    if (!coarse) return VectorTiles<float>::pack(row);
    for (int64_t r = row; r < row + 32; r += 16) pack_group(r);
    if (certifies.words) word_bounds.set(l, {row, row + 32});
  }

  template <class SameClass>
  TileState find_active(Span rows, Span columns, float* scores, uint32_t* bits,
                        SameClass&& same_class) const {
    if (!coarse) return VectorTiles<float>::find_active(rows, columns, scores, bits, same_class);
    const int64_t words = round_up(columns.size(), 32) / 32, width = words * 32;
    const Known known(*this, rows, columns, scores, bits);
    if (known.state() != TileState::open) return known.state();
    for (int64_t first = 0; first < pairs; first += kPairsAtOnce) {
      const int64_t last = first + kPairsAtOnce < pairs ? first + kPairsAtOnce : pairs;
      for (int64_t column = columns.begin; column < columns.end; column += kColumns) {
        for (int64_t row = rows.begin; row < rows.end; row += kRowBlock) {
          if (known.has(row, column)) continue;
          float* saved = scores + (row - rows.begin) * width + (column - columns.begin);
          Block block{};
          if (first > 0) block.load_from(saved, width);
          multiply(row, column, first, last, block);
          if (last < pairs) {
            block.store_to(saved, width);
          } else {
            const int64_t word = (row - rows.begin) * words + (column - columns.begin) / 32;
            decide(row, column, block, bits + word, words, same_class);
          }
        }
      }
    }
    return TileState::open;
  }

 private:
  static_assert(kColumns == 32);

  struct Block {
    __m512i sum[kRowBlock][2];

    PAIRLOSS_INLINE void load_from(const float* scores, int64_t stride) {
      for (int64_t r = 0; r < kRowBlock; ++r) {
        for (int v = 0; v < 2; ++v) sum[r][v] = _mm512_loadu_si512(scores + r * stride + v * 16);
      }
    }
    PAIRLOSS_INLINE void store_to(float* scores, int64_t stride) const {
      for (int64_t r = 0; r < kRowBlock; ++r) {
        for (int v = 0; v < 2; ++v) _mm512_storeu_si512(scores + r * stride + v * 16, sum[r][v]);
      }
    }
  };

  // 32 classes of a row as integers, 16 pairs; zeros beyond the last.
  PAIRLOSS_INLINE __m512i to_integers(const float* x, int64_t row, int64_t first,
                                      float factor) const {
    __m256i half[2];
    for (int64_t v = 0; v < 2; ++v) {
      const auto values = (__m512)vector_at(panels, x, row, first + v * 16);
      half[v] = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(values * factor));
    }
    return _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
  }

  void pack_group(int64_t row) {
    for (int64_t r = row; r < row + 16; ++r) set_scale(r);
    uint32_t* const to_b = b + row / kColumns * kColumns * pairs + row % kColumns;
    for (int64_t pair = 0; pair < stride; pair += 16) {
      __m512i of_l[16];
      for (int64_t r = 0; r < 16; ++r) {
        _mm512_storeu_si512(a + (row + r) * stride + pair,
                            to_integers(p, row + r, 2 * pair, 32767.0f));
        of_l[r] = to_integers(l, row + r, 2 * pair, kScale / scale[row + r]);
      }
      transpose_16x16(of_l);
      for (int64_t i = 0; i < 16 && pair + i < pairs; ++i) {
        _mm512_storeu_si512(to_b + (pair + i) * kColumns, of_l[i]);
      }
    }
  }

  void set_scale(int64_t row) {
    Vec<float> largest{}, sum{};
    for_each_vector(panels, row, [&](int64_t at, int64_t) {
      const Vec<float> x = load(l + at), magnitude = x < 0 ? -x : x;
      largest = magnitude > largest ? magnitude : largest;
      sum += magnitude;
    });
    const float most = horizontal_max<float>(largest);
    const float l_scale = most > 0 ? most * kScale : 1.0f;
    scale[row] = kScale * l_scale;
    // The last two: roundings of the sum, its factor and the threshold.
    unclear[row] = 0.5001f * l_scale +
                   0.5001f * kScale * static_cast<float>(horizontal_sum<float>(sum)) +
                   1e-6f * most + 4e-6f;
  }

  // Adds the pairs of classes first .. last - 1.
  PAIRLOSS_INLINE void multiply(int64_t row, int64_t column, int64_t first, int64_t last,
                                Block& block) const {
    const uint32_t* from_a = a + row * stride + first;
    const uint32_t* from_b = b + column * pairs + first * kColumns;
    for (int64_t pair = first; pair < last; ++pair, ++from_a, from_b += kColumns) {
      const __m512i low = _mm512_loadu_si512(from_b), high = _mm512_loadu_si512(from_b + 16);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRowBlock; ++r) {
        const __m512i factor = _mm512_set1_epi32(static_cast<int>(from_a[r * stride]));
        block.sum[r][0] = _mm512_dpwssd_epi32(block.sum[r][0], factor, low);
        block.sum[r][1] = _mm512_dpwssd_epi32(block.sum[r][1], factor, high);
      }
    }
  }

  template <class SameClass>
  PAIRLOSS_INLINE void decide(int64_t row, int64_t column, const Block& block, uint32_t* bits,
                              int64_t stride, SameClass&& same_class) const {
    const __m512 scales[2] = {load(scale + column), load(scale + column + 16)};
    const __m512 distances[2] = {load(unclear + column), load(unclear + column + 16)};
    for (int64_t r = 0; r < kRowBlock; ++r) {
      const __m512 threshold = _mm512_set1_ps(h[row + r] - static_cast<float>(margin));
      uint32_t word = 0, left = 0;
      for (int v = 0; v < 2; ++v) {
        const __m512 above =
            _mm512_fmsub_ps(_mm512_cvtepi32_ps(block.sum[r][v]), scales[v], threshold);
        const uint32_t active = _mm512_cmp_ps_mask(above, _mm512_setzero_ps(), _CMP_GT_OQ);
        // Also where it is NaN.
        const uint32_t close = _mm512_cmp_ps_mask(_mm512_abs_ps(above), distances[v], _CMP_NGT_UQ);
        word |= active << v * 16;
        left |= close << v * 16;
      }
      decide_in_float(*this, margin, row + r, column, left, word, same_class);
      bits[r * stride] = word;
    }
  }
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
#endif  // PAIRLOSS_VNNI
