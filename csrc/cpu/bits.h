// Bit matrices of a tile: row-major words of 32 bits, bit c of word w is column 32 w + c.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

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

// transposed (columns x rows) of bits (rows x columns); both multiples of 32.
inline void transpose_bits(const uint32_t* bits, int64_t rows, int64_t columns,
                           uint32_t* transposed) {
  typedef uint32_t Words __attribute__((vector_size(32)));
  constexpr int64_t kSideBySide = 8;
  const int64_t words = columns / 32, transposed_words = rows / 32;
  for (int64_t r = 0; r < transposed_words; ++r) {
    int64_t w = 0;
    for (; w + kSideBySide <= words; w += kSideBySide) {
      Words block[32];
      for (int i = 0; i < 32; ++i)
        __builtin_memcpy(&block[i], bits + (r * 32 + i) * words + w, sizeof(Words));
      transpose_32x32(block);
      for (int64_t b = 0; b < kSideBySide; ++b) {
        for (int i = 0; i < 32; ++i)
          transposed[((w + b) * 32 + i) * transposed_words + r] = block[i][b];
      }
    }
    for (; w < words; ++w) {
      uint32_t block[32];
      for (int i = 0; i < 32; ++i) block[i] = bits[(r * 32 + i) * words + w];
      transpose_32x32(block);
      for (int i = 0; i < 32; ++i) transposed[(w * 32 + i) * transposed_words + r] = block[i];
    }
  }
}

// Clears the bits begin <= column < end of one row.
inline void clear_bits(uint32_t* row, int64_t begin, int64_t end) {
  for (int64_t w = begin / 32; w * 32 < end; ++w) {
    const int64_t from = begin > w * 32 ? begin - w * 32 : 0;
    const int64_t to = end < (w + 1) * 32 ? end - w * 32 : 32;
    const uint64_t cleared = (uint64_t{1} << to) - (uint64_t{1} << from);
    row[w] &= ~static_cast<uint32_t>(cleared);
  }
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
