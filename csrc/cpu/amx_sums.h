// Sums over active pairs, by Advanced Matrix Extensions: products of byte tiles, 16 x 64 by 64 x
// 16, summed in 32 bits. A float is taken as an integer: in a column whose largest is in [2^e,
// 2^(e+1)),
//
//   x ~ v 2^(e-25),  |v| < 2^26,  off by 2^(e-26) at most
//
// and the integer as four digits to the base of 128,
//
//   v = (d3 128 + d2) 128^2 + (d1 128 + d0),  -64 <= d < 64.
//
// The bits times d0, and 128 times the bits times d1, are summed exactly as one; so are those times
// d2 and d3. A last vector of four columns or less has its four digits side by side, as one
// product. A column is as wide as the tile's rows make it: where that is too wide for its smaller
// elements, the method of Four Russians does the work (subset_sums.h).
//
// Tiles in memory: 1 KiB, 16 rows of 64 bytes. A-tiles hold the bits of 16 destination rows as 0
// and 1, or as 0 and 128; B-tiles hold one digit of 64 source rows, [16 groups of 4
// rows][column][row].
#pragma once

#if defined(PAIRLOSS_AMX)
namespace pairloss::cpu::PAIRLOSS_ISA {

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kSumDepth = 64;  // source rows of a step: two words of bits
constexpr int64_t kDigits = 4;
constexpr int64_t kBlockSums = 2 * 32 * 16;     // of 32 destination rows and 16 columns
constexpr int64_t kMostAbreast = 16 / kDigits;  // columns that have their digits in one tile

// Scratch of one worker.
struct AmxScratch {
  uint8_t* bits;    // [group of 32 destination rows][step][1, 128][row][64]
  uint8_t* digits;  // [vector of columns][step][digit] of B-tiles
  int32_t* sums;    // two of [d1 and d0, d3 and d2][32 destination rows][16 columns]

  void lay_out(Arena& arena, int64_t tile) {
    bits = arena.take<uint8_t>(tile / 32 * (tile / kSumDepth) * 4 * kTileBytes);
    digits = arena.take<uint8_t>(kPanelVectors * tile / kSumDepth * kDigits * kTileBytes);
    sums = arena.take<int32_t>(2 * kBlockSums);
  }
};

// The bits of a tile, and which of them are multiplied.
struct MultipliedBits {
  const uint32_t* bits;  // (rows, words)
  int64_t words, rows;
  const uint32_t* groups;  // per 32 rows: mask of words
  uint32_t any;            // of all groups
  bool has_panels;         // several: each group's bits are kept, else one place serves them all
  bool are_expanded = false;
  uint32_t steps[kLargestTile / 32] = {};  // per group: that have any
};

// Of 32 source rows, the largest magnitudes in one vector of columns.
PAIRLOSS_INLINE __m512 largest_of_word(const float* source, int64_t width) {
  constexpr int kLargerMagnitude = 0b1011;
  __m512 even = _mm512_setzero_ps(), odd = even;
  for (int64_t r = 0; r < 32; r += 2) {
    even = _mm512_range_ps(even, load(source + r * width), kLargerMagnitude);
    odd = _mm512_range_ps(odd, load(source + (r + 1) * width), kLargerMagnitude);
  }
  return _mm512_max_ps(even, odd);
}

// One panel of the source as integers: what its vectors of columns are multiplied by, and back.
struct FixedPoint {
  static constexpr float kWidest = 256.0f, kLeast = 0x1p-100f;  // factors and inverses are normal

  __m512 factor[kPanelVectors], inverse[kPanelVectors];
  bool fits;  // else some column is too wide

  // largest: of every word of the panel, in each column.
  FixedPoint(const float* largest, int64_t width, uint32_t words) {
    __m512 widest = _mm512_setzero_ps();
    for (int64_t column = 0; column < width; column += 16) {
      __m512 most = _mm512_set1_ps(kLeast);
      for (uint32_t left = words; left != 0; left &= left - 1) {
        most = _mm512_max_ps(most, load(largest + __builtin_ctz(left) * width + column));
      }
      widest = _mm512_max_ps(widest, most);
      const __m512 exponent = _mm512_getexp_ps(most), bits = _mm512_set1_ps(25.0f);
      factor[column / 16] = _mm512_scalef_ps(_mm512_set1_ps(1.0f), bits - exponent);
      inverse[column / 16] = _mm512_scalef_ps(_mm512_set1_ps(1.0f), exponent - bits);
    }
    fits = _mm512_reduce_max_ps(widest) < kWidest;
  }
};

// Four rows of bytes by their place: of each column, byte b of the four rows in to[b].
PAIRLOSS_INLINE void transpose_bytes(const __m512i (&rows)[4], __m512i (&to)[4]) {
  const __m512i even = _mm512_set1_epi32(0x00ff00ff), low = _mm512_set1_epi32(0x0000ffff);
  // Bitwise: a where the mask has ones, else b.
  constexpr int kBlend = 0xca;
  const auto blend = [](__m512i mask, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(mask, a, b, kBlend);
  };
  const __m512i first_even = blend(even, rows[0], _mm512_slli_epi32(rows[1], 8)),
                first_odd = blend(even, _mm512_srli_epi32(rows[0], 8), rows[1]),
                second_even = blend(even, rows[2], _mm512_slli_epi32(rows[3], 8)),
                second_odd = blend(even, _mm512_srli_epi32(rows[2], 8), rows[3]);
  to[0] = blend(low, first_even, _mm512_slli_epi32(second_even, 16));
  to[1] = blend(low, first_odd, _mm512_slli_epi32(second_odd, 16));
  to[2] = blend(low, _mm512_srli_epi32(first_even, 16), second_even);
  to[3] = blend(low, _mm512_srli_epi32(first_odd, 16), second_odd);
}

// The digits of 16 integers, as bytes.
PAIRLOSS_INLINE __m512i digits_of(__m512i v) {
  // With 64 added to each, digits are fields of 7 bits.
  constexpr int kBias = 64 * (1 + 128 + 128 * 128 + 128 * 128 * 128);
  const __m512i biased = _mm512_add_epi32(v, _mm512_set1_epi32(kBias));
  const __m512i first_bits = _mm512_set1_epi64(0x352e2720150e0700LL);
  const __m512i fields =
      _mm512_and_si512(_mm512_multishift_epi64_epi8(first_bits, biased), _mm512_set1_epi8(127));
  return _mm512_sub_epi8(fields, _mm512_set1_epi8(64));
}

// One vector of columns of a word of 32 source rows: half a B-tile of each digit.
PAIRLOSS_INLINE void split_word(const float* source, int64_t width, __m512 factor, uint8_t* to) {
  for (int64_t group = 0; group < 8; ++group, source += 4 * width, to += 64) {
    __m512i rows[4], digits[kDigits];
    for (int64_t r = 0; r < 4; ++r) {
      rows[r] = digits_of(_mm512_cvtps_epi32(load(source + r * width) * factor));
    }
    transpose_bytes(rows, digits);
    for (int64_t d = 0; d < kDigits; ++d) _mm512_storeu_si512(to + d * kTileBytes, digits[d]);
  }
}

// From [row][column][digit] to [digit][column][row], of four each.
struct DigitsFirst {
  alignas(64) uint8_t from[64];

  constexpr DigitsFirst() : from() {
    for (int i = 0; i < 64; ++i) {
      from[i] = static_cast<uint8_t>(i % 4 * 16 + i / 4 % 4 * 4 + i / 16);
    }
  }
};
inline constexpr DigitsFirst kDigitsFirst;

// The same of a vector of kMostAbreast columns: half a B-tile of columns [digit][column].
PAIRLOSS_INLINE void split_word_abreast(const float* source, int64_t width, __m512 factor,
                                        uint8_t* to) {
  const __m512i transposed = _mm512_load_si512(kDigitsFirst.from);
  const __m512 factors = _mm512_broadcast_f32x4(_mm512_castps512_ps128(factor));
  for (int64_t group = 0; group < 8; ++group, source += 4 * width, to += 64) {
    __m512 rows = _mm512_castps128_ps512(_mm_loadu_ps(source));
    rows = _mm512_insertf32x4(rows, _mm_loadu_ps(source + width), 1);
    rows = _mm512_insertf32x4(rows, _mm_loadu_ps(source + 2 * width), 2);
    rows = _mm512_insertf32x4(rows, _mm_loadu_ps(source + 3 * width), 3);
    const __m512i digits = digits_of(_mm512_cvtps_epi32(rows * factors));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi8(transposed, digits));
  }
}

// The bits of 32 destination rows as bytes; those of other words than `wanted` as 0. Returns the
// steps that have any.
PAIRLOSS_INLINE uint32_t expand_bits(const uint32_t* bits, int64_t words, uint32_t wanted,
                                     uint8_t* to) {
  uint32_t steps = 0;
  for (int64_t w = 0; w < words; w += 2, to += 4 * kTileBytes) {
    const uint64_t first = (wanted >> w & 1) != 0 ? 0xffffffff : 0,
                   second = (wanted >> w & 2) != 0 ? 0xffffffff : 0;
    if ((first | second) == 0) continue;
    steps |= uint32_t{1} << w / 2;
    for (int64_t r = 0; r < 32; ++r) {
      const uint32_t* const row = bits + r * words + w;
      const uint64_t both = (row[0] & first) | (w + 1 < words ? (row[1] & second) << 32 : 0);
      _mm512_storeu_si512(to + r * 64, _mm512_maskz_set1_epi8(both, 1));
      _mm512_storeu_si512(to + 2 * kTileBytes + r * 64,
                          _mm512_maskz_set1_epi8(both, static_cast<char>(128)));
    }
  }
  return steps;
}

// Tiles 0 to 3, one behind the other.
PAIRLOSS_INLINE void store_digit_sums(int32_t* sums) {
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

// The sums of 32 destination rows and one vector of columns.
PAIRLOSS_INLINE void multiply_digits(const uint8_t* bits, const uint8_t* digits, uint32_t steps,
                                     int32_t* sums) {
  begin_sums();
  for (; steps != 0; steps &= steps - 1) {
    const int64_t step = __builtin_ctz(steps);
    const uint8_t *a = bits + step * 4 * kTileBytes, *b = digits + step * kDigits * kTileBytes;
    for (int64_t odd = 0; odd < 2; ++odd, a += 2 * kTileBytes, b += kTileBytes) {
      _tile_loadd(4, a, 64);
      _tile_loadd(5, a + kTileBytes, 64);
      _tile_loadd(6, b, 64);
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 5, 6);
      _tile_loadd(7, b + 2 * kTileBytes, 64);
      _tile_dpbusd(2, 4, 7);
      _tile_dpbusd(3, 5, 7);
    }
  }
  store_digit_sums(sums);
}

// The same of digits that lie abreast: [steps in turn: two][32 destination rows][digit][column].
PAIRLOSS_INLINE void multiply_digits_abreast(const uint8_t* bits, const uint8_t* digits,
                                             uint32_t steps, int32_t* sums) {
  begin_sums();
  const auto load_step = [&] {
    const int64_t step = __builtin_ctz(steps);
    const uint8_t* const a = bits + step * 4 * kTileBytes;
    _tile_loadd(4, a, 64);
    _tile_loadd(5, a + kTileBytes, 64);
    _tile_loadd(6, digits + step * kDigits * kTileBytes, 64);
    steps &= steps - 1;
  };
  while (steps != 0) {
    load_step();
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 5, 6);
    if (steps == 0) break;
    load_step();
    _tile_dpbusd(2, 4, 6);
    _tile_dpbusd(3, 5, 6);
  }
  store_digit_sums(sums);
}

// destination[r] += the sums, put together.
PAIRLOSS_INLINE void add_sums(const int32_t* sums, __m512 inverse, int64_t rows, float* destination,
                              int64_t width) {
  const __m512 upper = inverse * (128.0f * 128.0f);
  for (int64_t r = 0; r < rows; ++r, sums += 16, destination += width) {
    const __m512 low = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums)),
                 high = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + kBlockSums / 2));
    store(destination, load(destination) + (high * upper + low * inverse));
  }
}

// The same of digits that lie abreast.
PAIRLOSS_INLINE void add_sums_abreast(const int32_t* sums, __m512 inverse, int64_t rows,
                                      float* destination, int64_t width) {
  constexpr int kNeighbours = 0b10110001;                     // of 4 lanes each, 1 0 3 2
  const __m512i shifts = _mm512_maskz_set1_epi32(0xf0f0, 7);  // of d1 and d3
  const __m128 low_unit = _mm512_castps512_ps128(inverse), high_unit = low_unit * (128.0f * 128.0f);
  for (int64_t r = 0; r < rows; ++r, sums += 16, destination += width) {
    const __m512i digits = _mm512_sllv_epi32(
        _mm512_add_epi32(_mm512_loadu_si512(sums), _mm512_loadu_si512(sums + kBlockSums / 2)),
        shifts);
    const __m512 both = _mm512_cvtepi32_ps(
        _mm512_add_epi32(digits, _mm512_shuffle_i32x4(digits, digits, kNeighbours)));
    const __m128 low = _mm512_castps512_ps128(both), high = _mm512_extractf32x4_ps(both, 2);
    _mm_storeu_ps(destination, _mm_loadu_ps(destination) + (high * high_unit + low * low_unit));
  }
}

// destination[d] += sum over the set bits of source, in one panel: both from the tile's first row
// on. columns: but for the padding.
inline void add_by_digits(const float* source, int64_t width, int64_t columns, MultipliedBits& x,
                          const FixedPoint& fixed, float* destination, const AmxScratch& scratch) {
  const TileSession session;
  const int64_t steps_of_all = (x.words + 1) / 2, of_vector = steps_of_all * kDigits * kTileBytes;
  const int64_t of_group = steps_of_all * 4 * kTileBytes;
  const auto is_abreast = [&](int64_t vector) { return columns - vector * 16 <= kMostAbreast; };
  for (int64_t vector = 0; vector * 16 < width; ++vector) {
    for (uint32_t left = x.any; left != 0; left &= left - 1) {
      const int64_t w = __builtin_ctz(left);
      const float* const from = source + w * 32 * width + vector * 16;
      uint8_t* const to = scratch.digits + vector * of_vector + w / 2 * kDigits * kTileBytes +
                          w % 2 * kTileBytes / 2;
      if (is_abreast(vector)) {
        split_word_abreast(from, width, fixed.factor[vector], to);
      } else {
        split_word(from, width, fixed.factor[vector], to);
      }
    }
  }
  // One block behind: the vector units finish a block while the matrix unit multiplies the next.
  int32_t *sums = scratch.sums, *ready = scratch.sums + kBlockSums;
  int64_t ready_row = -1, ready_vector = 0;
  const auto finish = [&] {
    if (ready_row < 0) return;
    const int64_t rows = x.rows - ready_row < 32 ? x.rows - ready_row : 32;
    float* const to = destination + ready_row * width + ready_vector * 16;
    if (is_abreast(ready_vector)) {
      add_sums_abreast(ready, fixed.inverse[ready_vector], rows, to, width);
    } else {
      add_sums(ready, fixed.inverse[ready_vector], rows, to, width);
    }
  };
  for (int64_t d = 0; d < x.rows; d += 32) {
    if (x.groups[d / 32] == 0) continue;
    uint8_t* const bits = scratch.bits + (x.has_panels ? d / 32 * of_group : 0);
    uint32_t& steps = x.steps[d / 32];
    if (!x.are_expanded) steps = expand_bits(x.bits + d * x.words, x.words, x.groups[d / 32], bits);
    for (int64_t vector = 0; vector * 16 < width; ++vector) {
      const uint8_t* const digits = scratch.digits + vector * of_vector;
      if (is_abreast(vector)) {
        multiply_digits_abreast(bits, digits, steps, sums);
      } else {
        multiply_digits(bits, digits, steps, sums);
      }
      finish();
      int32_t* const spare = ready;
      ready = sums, sums = spare;
      ready_row = d, ready_vector = vector;
    }
  }
  finish();
  x.are_expanded = true;
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
#endif  // PAIRLOSS_AMX
