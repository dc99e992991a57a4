// Products of a sparse bit matrix with a matrix of floats: the set bits of a row as a list of their
// numbers.
//
// A loop over the bits of each word mispredicts once per word, which costs more than the additions;
// a list has one loop per row, and sums stay in registers.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

struct BitLists {
  uint32_t* source;  // the numbers of the set bits, row after row
  uint32_t* begin;   // one more than there are rows

  static constexpr int64_t kSlack = 16;  // entries behind the last may be overwritten

  void lay_out(Arena& arena, int64_t rows, int64_t bits) {
    source = arena.take<uint32_t>(bits + kSlack);
    begin = arena.take<uint32_t>(rows + 1);
  }
};

// Writes the numbers of the set bits of a word, plus `base`, and returns how many there are.
PAIRLOSS_INLINE int64_t list_word(uint32_t word, uint32_t base, uint32_t* to) {
#if PAIRLOSS_VECTOR_BYTES == 64
  const __m512i number =
      _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(base)),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(word & 0xffff, number));
  const int64_t low = __builtin_popcount(word & 0xffff);
  _mm512_storeu_si512(to + low, _mm512_maskz_compress_epi32(
                                    word >> 16, _mm512_add_epi32(number, _mm512_set1_epi32(16))));
  return low + __builtin_popcount(word >> 16);
#else
  int64_t count = 0;
  for (; word != 0; word &= word - 1)
    to[count++] = base + static_cast<uint32_t>(__builtin_ctz(word));
  return count;
#endif
}

// The bits of the words `listed` of every row.
inline void list_bits(const uint32_t* bits, int64_t words, int64_t rows, const int64_t* listed,
                      int64_t listed_count, const BitLists& lists) {
  int64_t count = 0;
  for (int64_t d = 0; d < rows; ++d) {
    lists.begin[d] = static_cast<uint32_t>(count);
    for (int64_t i = 0; i < listed_count; ++i) {
      const int64_t w = listed[i];
      count += list_word(bits[d * words + w], static_cast<uint32_t>(w * 32), lists.source + count);
    }
  }
  lists.begin[rows] = static_cast<uint32_t>(count);
}

// destination[d] += sum of source[s] over the list of d, in one panel.
template <class T, int kVectors>
void add_listed(const T* source, const BitLists& lists, int64_t rows, T* destination) {
  constexpr int64_t width = kVectors * kLanes<T>;
  for (int64_t d = 0; d < rows; ++d, destination += width) {
    const uint32_t begin = lists.begin[d], end = lists.begin[d + 1];
    if (begin == end) continue;
    Vec<T> sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = load(destination + v * kLanes<T>);
    for (uint32_t i = begin; i < end; ++i) {
      const T* row = source + lists.source[i] * width;
      for (int v = 0; v < kVectors; ++v) sum[v] += load(row + v * kLanes<T>);
    }
    for (int v = 0; v < kVectors; ++v) store(destination + v * kLanes<T>, sum[v]);
  }
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
