// Products of a sparse bit matrix with a matrix of floats: the set bits of a row as a list of their
// numbers.
//
// A loop over the bits of each word mispredicts once per word, which costs more than the additions;
// a list has one loop per row, and sums stay in registers.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

struct BitLists {
  uint16_t* source;  // the numbers of the set bits, row after row
  uint32_t* begin;   // one more than there are rows

  static constexpr int64_t kSlack = 32;  // entries behind the last may be overwritten

  void lay_out(Arena& arena, int64_t rows, int64_t bits) {
    source = arena.take<uint16_t>(bits + kSlack);
    begin = arena.take<uint32_t>(rows + 1);
  }
};

#if defined(PAIRLOSS_AMX)
struct Numbers {
  alignas(64) uint16_t of[32];
  constexpr Numbers() : of{} {
    for (uint16_t i = 0; i < 32; ++i) of[i] = i;
  }
};
inline constexpr Numbers kNumbers;
#endif

// Writes the numbers of the set bits of a word, plus `base`, and returns how many there are.
PAIRLOSS_INLINE int64_t list_word(uint32_t word, uint32_t base, uint16_t* to) {
#if defined(PAIRLOSS_AMX)
  const __m512i number = _mm512_add_epi16(_mm512_set1_epi16(static_cast<int16_t>(base)),
                                          _mm512_load_si512(kNumbers.of));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(word, number));
  return __builtin_popcount(word);
#elif PAIRLOSS_VECTOR_BYTES == 64
  const __m512i number =
      _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(base)), lane_numbers());
  const auto store_half = [](uint16_t* half, uint32_t mask, __m512i of_half) {
    const __m512i listed = _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), of_half);
    _mm256_storeu_si256((__m256i*)half, _mm512_cvtepi32_epi16(listed));
  };
  const int64_t low = __builtin_popcount(word & 0xffff);
  store_half(to, word & 0xffff, number);
  store_half(to + low, word >> 16, _mm512_add_epi32(number, _mm512_set1_epi32(16)));
  return low + __builtin_popcount(word >> 16);
#else
  int64_t count = 0;
  for (; word != 0; word &= word - 1)
    to[count++] = static_cast<uint16_t>(base + static_cast<uint32_t>(__builtin_ctz(word)));
  return count;
#endif
}

// sum += (or with kMinus, -=) source[s] over entries begin .. end - 1 of the lists, in one panel.
template <class T, int kVectors, bool kMinus = false>
PAIRLOSS_INLINE void add_entries(const T* source, const BitLists& lists, uint32_t begin,
                                 uint32_t end, Vec<T> (&sum)[kVectors]) {
  for (uint32_t i = begin; i < end; ++i) {
    const T* row = source + lists.source[i] * (kVectors * kLanes<T>);
    for (int v = 0; v < kVectors; ++v) {
      const Vec<T> x = load(row + v * kLanes<T>);
      sum[v] = kMinus ? sum[v] - x : sum[v] + x;
    }
  }
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
