// Which pairs of a tile are similar and which dissimilar, as bits: from the labels of a level, or
// from a matrix.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

// Bit c is set where ids[c] == id, for 32 of them.
PAIRLOSS_INLINE uint32_t equal_mask(const int32_t* ids, int32_t id) {
#if PAIRLOSS_VECTOR_BYTES == 64
  const __m512i wanted = _mm512_set1_epi32(id);
  return _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(ids), wanted) |
         static_cast<uint32_t>(_mm512_cmpeq_epi32_mask(_mm512_loadu_si512(ids + 16), wanted)) << 16;
#else
  uint32_t mask = 0;
  for (int c = 0; c < 32; ++c) mask |= uint32_t{ids[c] == id} << c;
  return mask;
#endif
}

// The classes of some positions; -1: takes no part.
struct IdRange {
  int32_t low, high;
  bool gaps, padded;  // positions without a class: rows that take no part, and behind the last row

  bool contains(int32_t id) const { return low <= id && id <= high; }
};

// One level of labels, by position.
struct LevelIds {
  int32_t* id;      // padded with -1
  IdRange* blocks;  // of every block of rows

  // bits (rows x columns, in words) where the pair is dissimilar; 0 elsewhere and in the padding.
  void keep_dissimilar(Span rows, Span columns, const IdRange& of_columns, const uint32_t* bits,
                       uint32_t* kept) const {
    const int64_t words = round_up(columns.size(), 32) / 32;
    const bool gaps = of_columns.gaps || of_columns.padded;
    uint32_t dissimilar[kLargestTile / 32];  // to rows of one class, which stand together
    int32_t of_id = -1;
    for (int64_t r = 0; r < round_up(rows.size(), 32); ++r) {
      const uint32_t* from = bits + r * words;
      uint32_t* to = kept + r * words;
      const int32_t row_id = r < rows.size() ? id[rows.begin + r] : -1;
      if (row_id < 0) {
        for (int64_t w = 0; w < words; ++w) to[w] = 0;
      } else if (gaps || of_columns.contains(row_id)) {
        if (row_id != of_id) find_dissimilar(columns, gaps, row_id, dissimilar);
        of_id = row_id;
        for (int64_t w = 0; w < words; ++w) to[w] = from[w] & dissimilar[w];
      } else if (to != from) {
        __builtin_memcpy(to, from, words * sizeof(uint32_t));
      }
    }
  }

  // The columns that are dissimilar to a row of one class.
  void find_dissimilar(Span columns, bool gaps, int32_t row_id, uint32_t* dissimilar) const {
    const int32_t* column_id = id + columns.begin;
    for (int64_t w = 0; w * 32 < columns.size(); ++w, column_id += 32) {
      const uint32_t not_there = gaps ? equal_mask(column_id, -1) : 0;
      dissimilar[w] = ~(equal_mask(column_id, row_id) | not_there);
    }
  }

  // Whether all pairs of two blocks are similar, or take no part.
  static bool has_no_dissimilar(const IdRange& rows, const IdRange& columns) {
    const bool one_class = rows.low == rows.high && columns.low == columns.high;
    return rows.high < 0 || columns.high < 0 || (one_class && rows.low == columns.low);
  }
  // Whether all pairs of two blocks are known to be dissimilar: by the ranges of their ids alone.
  static bool is_all_dissimilar(const IdRange& rows, const IdRange& columns) {
    return !rows.gaps && !columns.gaps && (rows.high < columns.low || columns.high < rows.low);
  }
};

// A similarity matrix, by position.
struct SimilarityMatrix {
  const int8_t* entries;  // (n, n)
  int64_t n;
  const int64_t* row;  // position -> row of the matrix

  // The signs of up to 32 entries of a row of the matrix.
  PAIRLOSS_INLINE void signs(int64_t i, const int64_t* columns, int64_t count, uint32_t& positive,
                             uint32_t& negative) const {
    const int8_t* entry = entries + i * n;
    positive = negative = 0;
    for (int64_t c = 0; c < count; ++c) {
      const int8_t x = columns[c] == i ? 0 : entry[columns[c]];
      positive |= uint32_t{x > 0} << c;
      negative |= uint32_t{x < 0} << c;
    }
  }

  // similar: the bits of similar pairs; bits: left set only where the pair is dissimilar. Both 0 in
  // the padding.
  void split(Span rows, Span columns, uint32_t* bits, uint32_t* similar) const {
    const int64_t words = round_up(columns.size(), 32) / 32;
    for (int64_t r = 0; r < round_up(rows.size(), 32); ++r) {
      for (int64_t w = 0; w < words; ++w) {
        const int64_t left = columns.size() - w * 32;
        uint32_t positive = 0, negative = 0;
        if (r < rows.size()) {
          signs(row[rows.begin + r], row + columns.begin + w * 32, left < 32 ? left : 32, positive,
                negative);
        }
        bits[r * words + w] &= negative;
        similar[r * words + w] = positive;
      }
    }
  }
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
