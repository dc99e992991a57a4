// Products of a bit matrix with a matrix of floats: destination[d] += sum over the set bits s of
// bits[d] of source[s].
//
// The method of Four Russians (Arlazarov, Dinic, Kronrod, Faradzev, 1970): of every 4 source rows
// the 16 sums of subsets are tabulated, and one look-up replaces 4 multiply-adds. 8 tables, for the
// 32 rows that one word of bits speaks of, are 32 KiB at the full panel width, which is the
// first-level cache.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

constexpr int64_t kTables = 32 / 4;

template <class T>
constexpr int64_t kTableElements = kTables * 16 * kPanelVectors * kLanes<T>;

// tables[t][subset][column]
template <class T, int kVectors>
PAIRLOSS_INLINE void tabulate_subset_sums(const T* source, T* tables) {
  constexpr int64_t width = kVectors * kLanes<T>;
  for (int64_t t = 0; t < kTables; ++t, tables += 16 * width) {
    for (int v = 0; v < kVectors; ++v) store(tables + v * kLanes<T>, Vec<T>{});
    for (int bit = 0; bit < 4; ++bit, source += width) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t column = v * kLanes<T>;
        const Vec<T> row = load(source + column);
        for (int subset = 0; subset < 1 << bit; ++subset) {
          store(tables + ((1 << bit) + subset) * width + column,
                load(tables + subset * width + column) + row);
        }
      }
    }
  }
}

// Of one word of 32 source rows, for the groups of 32 destination rows whose mask has bit `wanted`.
template <class T, int kVectors>
void add_by_tables(const T* source, const uint32_t* bits, int64_t bits_stride, int64_t rows,
                   const uint32_t* groups, uint32_t wanted, T* destination, T* tables) {
  constexpr int64_t width = kVectors * kLanes<T>;
  tabulate_subset_sums<T, kVectors>(source, tables);
  for (int64_t d = 0; d < rows; ++d, destination += width) {
    uint32_t word = bits[d * bits_stride];
    if (word == 0 || (groups[d / 32] & wanted) == 0) continue;
    Vec<T> sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = load(destination + v * kLanes<T>);
#pragma GCC unroll 8
    for (int64_t t = 0; t < kTables; ++t) {
      const T* entry = tables + (t * 16 + (word >> 4 * t & 15)) * width;
      for (int v = 0; v < kVectors; ++v) sum[v] += load(entry + v * kLanes<T>);
    }
    for (int v = 0; v < kVectors; ++v) store(destination + v * kLanes<T>, sum[v]);
  }
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
