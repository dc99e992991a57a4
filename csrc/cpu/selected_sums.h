// Products of the bits of one tile with a matrix of floats, by whichever way is fastest for each
// word of 32 columns:
//
//   few bits set    their numbers in lists                              bit_lists.h
//   more            the method of Four Russians, or the matrix unit     subset_sums.h, amx.h
//
// destination[d] += sum over the set bits s of row d of source[s].
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

constexpr int64_t kLargestTile = 512;

// Up to this many bits of a word in all rows, listing them is the fastest: about one look-up in the
// tables per row.
constexpr int64_t listed_bits(int64_t rows) { return 2 * rows + 32; }

template <class T>
struct SelectionScratch {
  BitLists lists;
  T* tables;
#if defined(PAIRLOSS_AMX)
  AmxScratch amx;
#endif

  void lay_out(Arena& arena, int64_t tile) {
    lists.lay_out(arena, tile, tile / 32 * listed_bits(tile));
    tables = arena.take<T>(kTableElements<T>);
#if defined(PAIRLOSS_AMX)
    amx.lay_out(arena, tile);
#endif
  }
};

// f(std::integral_constant<int, n>) for the n = 1 .. 4 vectors of a panel.
template <class F>
PAIRLOSS_INLINE void for_vectors(int64_t vectors, F&& f) {
  switch (vectors) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    default:
      return f(std::integral_constant<int, 4>());
  }
}

// The bits of a tile (destination rows x words of source rows), sorted by how many there are.
template <class T>
class Selection {
 public:
  // counts[d] += set bits of row d. touched(d) is called before the first bit of a row is counted.
  template <class Touched>
  Selection(const uint32_t* bits, int64_t words, int64_t rows, const SelectionScratch<T>& scratch,
            int32_t* counts, Touched&& touched)
      : bits_(bits), words_(words), rows_(rows), scratch_(scratch) {
    int64_t set_bits[kLargestTile / 32] = {};
    for (int64_t d = 0; d < rows; ++d) {
      int32_t of_row = 0;
      for (int64_t w = 0; w < words; ++w) {
        const int of_word = __builtin_popcount(bits[d * words + w]);
        set_bits[w] += of_word;
        of_row += of_word;
      }
      if (counts[d] == 0 && of_row > 0) touched(d);
      counts[d] += of_row;
    }
    int64_t listed[kLargestTile / 32], listed_count = 0;
    for (int64_t w = 0; w < words; ++w) {
      if (set_bits[w] > listed_bits(rows)) {
        dense_[dense_count_++] = w;
      } else if (set_bits[w] > 0) {
        listed[listed_count++] = w;
      }
    }
    has_lists_ = listed_count > 0;
    if (has_lists_) list_bits(bits, words, rows, listed, listed_count, scratch.lists);
  }

  void add(const Panels<T>& panels, const T* source, int64_t source_row, T* destination,
           int64_t destination_row) const {
    if (has_lists_) {
      for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const T* from = source + panels.at(panel, source_row);
        T* to = destination + panels.at(panel, destination_row);
        for_vectors(panels.width(panel) / kLanes<T>,
                    [&](auto n) { add_listed<T, n>(from, scratch_.lists, rows_, to); });
      }
    }
    if (dense_count_ == 0) return;
#if defined(PAIRLOSS_AMX)
    if constexpr (std::is_same_v<T, float>) {
      add_selected_by_amx(panels, source, source_row, bits_, words_, rows_, dense_, dense_count_,
                          destination, destination_row, scratch_.amx);
      return;
    }
#endif
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
      T* to = destination + panels.at(panel, destination_row);
      for (int64_t i = 0; i < dense_count_; ++i) {
        const int64_t w = dense_[i];
        const T* from = source + panels.at(panel, source_row + w * 32);
        for_vectors(panels.width(panel) / kLanes<T>, [&](auto n) {
          add_by_tables<T, n>(from, bits_ + w, words_, rows_, to, scratch_.tables);
        });
      }
    }
  }

 private:
  const uint32_t* bits_;
  int64_t words_, rows_;
  const SelectionScratch<T>& scratch_;
  int64_t dense_[kLargestTile / 32], dense_count_ = 0;
  bool has_lists_;
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
