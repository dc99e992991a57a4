// Bit matrices of a tile: row-major words of 32 bits, bit c of word w is column 32 w + c.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

typedef uint32_t FourWords __attribute__((vector_size(16)));
typedef uint32_t EightWords __attribute__((vector_size(32)));

// The transpose of 32 x 32 bits, in five rounds that swap blocks of 16, 8, 4, 2 and 1 (Warren,
// Hacker's Delight, 7-3). A vector holds words of neighbouring blocks, so that they are turned side
// by side.
template <class Word>
PAIRLOSS_INLINE void transpose_32x32(Word (&a)[32]) {
  uint32_t mask = 0x0000ffffu;
  for (int step = 16; step != 0; step >>= 1, mask ^= mask << step) {
    for (int i = 0; i < 32; i = (i + step + 1) & ~step) {
      const Word swapped = ((a[i] >> step) ^ a[i + step]) & mask;
      a[i] ^= swapped << step;
      a[i + step] ^= swapped;
    }
  }
}

// 32 rows of neighbouring blocks: from[i * words], and to[i * transposed_words] of each block.
template <class Word>
PAIRLOSS_INLINE void transpose_blocks(const uint32_t* from, int64_t words, uint32_t* to,
                                      int64_t transposed_words) {
  constexpr int64_t kBlocks = sizeof(Word) / sizeof(uint32_t);
  Word block[32];
  for (int i = 0; i < 32; ++i) __builtin_memcpy(&block[i], from + i * words, sizeof(Word));
  transpose_32x32(block);
  for (int64_t b = 0; b < kBlocks; ++b) {
    for (int i = 0; i < 32; ++i) {
      __builtin_memcpy(to + (b * 32 + i) * transposed_words,
                       reinterpret_cast<const char*>(&block[i]) + b * sizeof(uint32_t),
                       sizeof(uint32_t));
    }
  }
}

// transposed (columns x rows) of bits (rows x columns); both multiples of 32.
inline void transpose_bits(const uint32_t* bits, int64_t rows, int64_t columns,
                           uint32_t* transposed) {
  const int64_t words = columns / 32, transposed_words = rows / 32;
  for (int64_t r = 0; r < transposed_words; ++r) {
    const uint32_t* const from = bits + r * 32 * words;
    uint32_t* const to = transposed + r;
    int64_t w = 0;
    const auto transpose = [&]<class Word>(Word) {
      for (; w + static_cast<int64_t>(sizeof(Word) / 4) <= words; w += sizeof(Word) / 4) {
        transpose_blocks<Word>(from + w, words, to + w * 32 * transposed_words, transposed_words);
      }
    };
    transpose(EightWords{});
    transpose(FourWords{});
    transpose(uint32_t{});
  }
}

// The set bits of each word: by pairs, by fours, and so on (Warren, Hacker's Delight, 5-1).
template <class Word>
PAIRLOSS_INLINE Word count_bits(Word x) {
#if defined(PAIRLOSS_AMX)
  if constexpr (sizeof(Word) == 32) return (Word)_mm256_popcnt_epi32((__m256i)x);
  if constexpr (sizeof(Word) == 16) return (Word)_mm_popcnt_epi32((__m128i)x);
#endif
  x = x - ((x >> 1) & 0x55555555u);
  x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0fu;
  x = x + (x >> 8);
  return (x + (x >> 16)) & 0x3fu;
}

// counts[w] += the set bits of word w of all rows.
inline void count_by_word(const uint32_t* bits, int64_t words, int64_t rows, uint32_t* counts) {
  int64_t w = 0;
  const auto count = [&]<class Word>(Word sum) {
    for (; w + static_cast<int64_t>(sizeof(Word) / 4) <= words; w += sizeof(Word) / 4) {
      __builtin_memcpy(&sum, counts + w, sizeof sum);
      for (int64_t d = 0; d < rows; ++d) {
        Word x;
        __builtin_memcpy(&x, bits + d * words + w, sizeof x);
        sum += count_bits(x);
      }
      __builtin_memcpy(counts + w, &sum, sizeof sum);
    }
  };
  count(EightWords{});
  count(FourWords{});
  for (; w < words; ++w) {
    for (int64_t d = 0; d < rows; ++d) counts[w] += __builtin_popcount(bits[d * words + w]);
  }
}

PAIRLOSS_INLINE int32_t count_row(const uint32_t* row, int64_t words) {
  int32_t count = 0;
  int64_t w = 0;
  for (; w + 2 <= words; w += 2) {
    uint64_t pair;
    __builtin_memcpy(&pair, row + w, sizeof pair);
    count += __builtin_popcountll(pair);
  }
  return w < words ? count + __builtin_popcount(row[w]) : count;
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
