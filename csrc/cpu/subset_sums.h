// Products of a bit matrix with a matrix of floats: destination[d] += sum over the set bits s of bits[d] of source[s].
//
// The method of Four Russians (Arlazarov, Dinic, Kronrod, Faradzev, 1970): of every 4 source rows the 16 sums of
// subsets are tabulated, and one look-up replaces 4 multiply-adds. 8 tables, for the 32 rows that one word of bits
// speaks of, are 32 KiB at the full panel width, which is the first-level cache.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

constexpr int64_t kWordBits = 32;
constexpr int64_t kTables = kWordBits / 4;

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
          store(tables + ((1 << bit) + subset) * width + column, load(tables + subset * width + column) + row);
        }
      }
    }
  }
}

template <class T, int kVectors>
void add_by_tables(const T* source, const uint32_t* bits, int64_t bits_stride, int64_t rows, T* destination, T* tables) {
  constexpr int64_t width = kVectors * kLanes<T>;
  tabulate_subset_sums<T, kVectors>(source, tables);
  for (int64_t d = 0; d < rows; ++d, destination += width) {
    uint32_t word = bits[d * bits_stride];
    if (word == 0) continue;
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

template <class T, int kVectors>
void add_bit_by_bit(const T* source, const uint32_t* bits, int64_t bits_stride, int64_t rows, T* destination) {
  constexpr int64_t width = kVectors * kLanes<T>;
  for (int64_t d = 0; d < rows; ++d, destination += width) {
    for (uint32_t word = bits[d * bits_stride]; word != 0; word &= word - 1) {
      const T* row = source + __builtin_ctz(word) * width;
      for (int v = 0; v < kVectors; ++v) {
        const int64_t column = v * kLanes<T>;
        store(destination + column, load(destination + column) + load(row + column));
      }
    }
  }
}

template <class T, int kVectors>
void add_selected_panel(const T* source, const uint32_t* bits, int64_t bits_stride, int64_t rows, int64_t set_bits,
                        T* destination, T* tables) {
  // A table costs about 4 rows of additions per bit of the word, a look-up 8; a single bit costs one and the
  // branches around it.
  if (set_bits * 4 < rows * 8 + 128) {
    add_bit_by_bit<T, kVectors>(source, bits, bits_stride, rows, destination);
  } else {
    add_by_tables<T, kVectors>(source, bits, bits_stride, rows, destination, tables);
  }
}

// For the 32 source rows from source_row on, and `rows` destination rows from destination_row on; bits has one word
// per destination row, of which set_bits are set in total.
template <class T>
void add_selected(const Panels<T>& panels, const T* source, int64_t source_row, const uint32_t* bits,
                  int64_t bits_stride, int64_t rows, int64_t set_bits, T* destination, int64_t destination_row,
                  int64_t panel, T* tables) {
  const T* from = source + panels.at(panel, source_row);
  T* to = destination + panels.at(panel, destination_row);
  switch (panels.width(panel) / kLanes<T>) {
    case 1:
      return add_selected_panel<T, 1>(from, bits, bits_stride, rows, set_bits, to, tables);
    case 2:
      return add_selected_panel<T, 2>(from, bits, bits_stride, rows, set_bits, to, tables);
    case 3:
      return add_selected_panel<T, 3>(from, bits, bits_stride, rows, set_bits, to, tables);
    default:
      return add_selected_panel<T, 4>(from, bits, bits_stride, rows, set_bits, to, tables);
  }
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
