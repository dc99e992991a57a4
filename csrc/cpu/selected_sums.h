// Products of the bits of one tile with a matrix of floats,
//
//   destination[d] += sum over the set bits s of row d of source[s],
//
// by whichever way is fastest for each block of 32 rows x 32 columns:
//
//   rows nearly empty or nearly full   lists of the set, or of the missing bits     bit_lists.h
//   others                             the method of Four Russians, or the matrix unit
//                                                                       subset_sums.h, amx_sums.h
//
// A row that has nearly all of a word takes the word's total, and subtracts what is missing; one
// that has nearly all of most words takes the total of those.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

// Without the other ways there is nothing but lists: of the set bits, or else of the missing ones.
#if defined(PAIRLOSS_AMX)
constexpr bool kListsAll = false;
#else
constexpr bool kListsAll = !uses<Idea::subset_sums>;
#endif
// Up to so many entries in the lists of a block, listing is the fastest (measured). Making the
// lists takes as long whatever is summed, and the other ways are the faster the fewer vectors a row
// of the source has: of a single one, nothing is listed.
constexpr int64_t kListedBits = kListsAll ? 512 : 160;
constexpr int64_t listed_bits(int64_t vectors) {
  if (!uses<Idea::bit_lists>) return 0;
  if (kListsAll) return kListedBits;
  const int64_t bits = kListedBits - kListedBits * 9 / (8 * vectors);
  return bits > 0 ? bits : 0;
}

// The other ways begin with work on every row of the source, which so few rows do not repay.
constexpr int64_t kFewRows = 32;

template <class T>
struct SelectionScratch {
  BitLists lists, missing;               // set bits, and missing ones of nearly full words
  uint32_t *plus_totals, *minus_totals;  // per row: the words whose totals are added, subtracted
  bool* takes_total;                     // per row: the total of the mostly full words
  T *totals, *total;                     // of every word, and of those; one panel
  T* tables;
#if defined(PAIRLOSS_AMX)
  AmxScratch amx;
#endif

  void lay_out(Arena& arena, int64_t tile) {
    const int64_t words = tile / 32;
    const int64_t listed = std::max(words * words * kListedBits, kFewRows * tile);
    lists.lay_out(arena, tile, listed);
    missing.lay_out(arena, tile, listed);
    plus_totals = arena.take<uint32_t>(tile);
    minus_totals = arena.take<uint32_t>(tile);
    takes_total = arena.take<bool>(tile);
    totals = arena.take<T>(words * Panels<T>::kWidth);
    total = arena.take<T>(Panels<T>::kWidth);
    tables = arena.take<T>(kTableElements<T>);
#if defined(PAIRLOSS_AMX)
    amx.lay_out(arena, tile);
#endif
  }
};

// The bits of a tile (destination rows x words of source rows), sorted by how they are summed.
template <class T>
class Selection {
 public:
  // counts[d] += set bits of row d. touched(d) is called before the first bit of a row is counted.
  // columns: of what is to be summed.
  template <class Touched>
  Selection(const uint32_t* bits, int64_t words, int64_t rows, int64_t columns,
            const SelectionScratch<T>& scratch, int32_t* counts, Touched&& touched)
      : bits_(bits),
        words_(words),
        rows_(rows),
        listed_(rows <= kFewRows ? kFewRows * 32 : listed_bits(columns / kLanes<T>)),
        scratch_(scratch) {
    int64_t full_rows[kLargestTile / 32] = {};
    for (int64_t group = 0; group * 32 < rows; ++group) {
      const int64_t end = (group + 1) * 32 < rows ? (group + 1) * 32 : rows;
      uint32_t set_bits[kLargestTile / 32] = {};  // of every word, in these rows
      count_by_word(bits + group * 32 * words, words, end - group * 32, set_bits);
      for (int64_t d = group * 32; d < end; ++d) {
        const int32_t of_row = count_row(bits + d * words, words);
        if (counts[d] == 0 && of_row > 0) touched(d);
        counts[d] += of_row;
      }
      const auto all_bits = static_cast<uint32_t>(32 * (end - group * 32));
      for (int64_t w = 0; w < words; ++w) {
        const uint32_t bit = uint32_t{1} << w;
        if (set_bits[w] == 0) continue;
        if (uses<Idea::totals> && set_bits[w] == all_bits) {
          whole_[group] |= bit;
          full_rows[w] += end - group * 32;
        } else if (set_bits[w] <= listed_) {
          sparse_[group] |= bit;
        } else if (listed_ == 0) {
          dense_[group] |= bit;
        } else {
          full_rows[w] += look_closer(group, w, end);
        }
      }
      any_dense_ |= dense_[group];
      any_full_ |= full_[group] | whole_[group];
      has_lists_ |= (sparse_[group] | full_[group] | whole_[group]) != 0;
    }
    for (int64_t w = 0; w < words; ++w) mostly_full_ |= uint32_t{full_rows[w] * 2 > rows} << w;
    if (has_lists_) make_lists();
  }

  // The same bits, for any source.
  void add(const Panels<T>& panels, const Source<T>& source, int64_t source_row, T* destination,
           int64_t destination_row) const {
    for (int64_t panel = 0; panel < (has_lists_ ? panels.count() : 0); ++panel) {
      const T* from = source.x + panels.at(panel, source_row);
      T* to = destination + panels.at(panel, destination_row);
      for_vectors(panels.width(panel) / kLanes<T>,
                  [&](auto vectors) { add_lists<vectors>(from, to); });
    }
    if (any_dense_ == 0) return;
#if defined(PAIRLOSS_AMX)
    MultipliedBits multiplied{bits_, words_, rows_, dense_, any_dense_, panels.count() > 1};
#endif
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
      const int64_t width = panels.width(panel);
      const T* from = source.x + panels.at(panel, source_row);
      T* to = destination + panels.at(panel, destination_row);
#if defined(PAIRLOSS_AMX)
      if constexpr (kMultiplies<T>) {
        const Panels<T> of_words = Source<T>::words(panels);
        const FixedPoint fixed(source.largest + of_words.at(panel, source_row / 32), width,
                               any_dense_);
        if (fixed.fits) {
          const int64_t columns = panels.k - panel * Panels<T>::kWidth;
          add_by_digits(from, width, columns, multiplied, fixed, to, scratch_.amx);
          continue;
        }
      }
#endif
      for_vectors(width / kLanes<T>, [&](auto vectors) { add_dense<vectors>(from, to); });
    }
  }

 private:
  // One panel, by tables.
  template <int kVectors>
  void add_dense(const T* source, T* destination) const {
    for (uint32_t left = any_dense_; left != 0; left &= left - 1) {
      const int w = __builtin_ctz(left);
      add_by_tables<T, kVectors>(source + w * 32 * kVectors * kLanes<T>, bits_ + w, words_, rows_,
                                 dense_, uint32_t{1} << w, destination, scratch_.tables);
    }
  }

  static bool is_full(int set) { return uses<Idea::totals> && set > 16; }

  // A block with more bits than are listed: dense, or with full rows. Returns how many of those.
  int64_t look_closer(int64_t group, int64_t w, int64_t end) {
    int64_t to_list = 0, full = 0;
    for (int64_t d = group * 32; d < end; ++d) {
      const int set = __builtin_popcount(bits_[d * words_ + w]);
      to_list += is_full(set) ? 32 - set : set;
      full += is_full(set);
    }
    const bool is_dense = to_list > listed_;
    (is_dense ? dense_ : full_)[group] |= uint32_t{1} << w;
    return is_dense ? 0 : full;
  }

  void make_lists() {
    const BitLists &lists = scratch_.lists, &missing = scratch_.missing;
    const int mostly_full = __builtin_popcount(mostly_full_);
    int64_t count = 0, missing_count = 0;
    for (int64_t group = 0; group * 32 < rows_; ++group) {
      int64_t sparse[kLargestTile / 32], sparse_count = 0;
      for (uint32_t left = sparse_[group]; left != 0; left &= left - 1) {
        sparse[sparse_count++] = __builtin_ctz(left);
      }
      for (int64_t d = group * 32; d < (group + 1) * 32 && d < rows_; ++d) {
        const uint32_t* row = bits_ + d * words_;
        lists.begin[d] = static_cast<uint32_t>(count);
        missing.begin[d] = static_cast<uint32_t>(missing_count);
        for (int64_t i = 0; i < sparse_count; ++i) {
          const int64_t w = sparse[i];
          count += list_word(row[w], static_cast<uint32_t>(w * 32), lists.source + count);
        }
        uint32_t full = whole_[group];
        for (uint32_t left = full_[group]; left != 0; left &= left - 1) {
          const int w = __builtin_ctz(left);
          const auto first = static_cast<uint32_t>(w * 32);
          if (is_full(__builtin_popcount(row[w]))) {
            full |= uint32_t{1} << w;
            missing_count += list_word(~row[w], first, missing.source + missing_count);
          } else {
            count += list_word(row[w], first, lists.source + count);
          }
        }
        if (any_full_ == 0) continue;
        const bool takes_total = 2 * __builtin_popcount(full & mostly_full_) > mostly_full;
        scratch_.takes_total[d] = takes_total;
        scratch_.plus_totals[d] = takes_total ? full & ~mostly_full_ : full;
        scratch_.minus_totals[d] = takes_total ? mostly_full_ & ~full : 0;
      }
    }
    lists.begin[rows_] = static_cast<uint32_t>(count);
    missing.begin[rows_] = static_cast<uint32_t>(missing_count);
  }

  // One panel.
  template <int kVectors>
  PAIRLOSS_INLINE void add_lists(const T* source, T* destination) const {
    constexpr int64_t width = kVectors * kLanes<T>;
    const BitLists &lists = scratch_.lists, &missing = scratch_.missing;
    if (any_full_ != 0) add_totals<kVectors>(source);
    for (int64_t d = 0; d < rows_; ++d, destination += width) {
      const uint32_t begin = lists.begin[d], end = lists.begin[d + 1];
      const bool takes_total = any_full_ != 0 && scratch_.takes_total[d];
      const uint32_t plus = any_full_ != 0 ? scratch_.plus_totals[d] : 0;
      if (begin == end && !takes_total && plus == 0) continue;
      Vec<T> sum[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = load(destination + v * kLanes<T>);
      add_entries<T, kVectors>(source, lists, begin, end, sum);
      if (takes_total || plus != 0) {
        Vec<T> full[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          full[v] = takes_total ? load(scratch_.total + v * kLanes<T>) : Vec<T>{};
        }
        for (uint32_t left = scratch_.minus_totals[d]; left != 0; left &= left - 1) {
          const T* from = scratch_.totals + __builtin_ctz(left) * width;
          for (int v = 0; v < kVectors; ++v) full[v] -= load(from + v * kLanes<T>);
        }
        for (uint32_t left = plus; left != 0; left &= left - 1) {
          const T* from = scratch_.totals + __builtin_ctz(left) * width;
          for (int v = 0; v < kVectors; ++v) full[v] += load(from + v * kLanes<T>);
        }
        add_entries<T, kVectors, true>(source, missing, missing.begin[d], missing.begin[d + 1],
                                       full);
        for (int v = 0; v < kVectors; ++v) sum[v] += full[v];
      }
      for (int v = 0; v < kVectors; ++v) store(destination + v * kLanes<T>, sum[v]);
    }
  }

  // The totals of the words that are full in any row.
  template <int kVectors>
  PAIRLOSS_INLINE void add_totals(const T* source) const {
    constexpr int64_t width = kVectors * kLanes<T>;
    Vec<T> total[kVectors] = {};
    for (uint32_t left = any_full_; left != 0; left &= left - 1) {
      const int w = __builtin_ctz(left);
      const T* row = source + w * 32 * width;
      Vec<T> of_word[kVectors] = {};
      for (int64_t s = 0; s < 32; ++s, row += width) {
        for (int v = 0; v < kVectors; ++v) of_word[v] += load(row + v * kLanes<T>);
      }
      const bool counts = (mostly_full_ >> w & 1) != 0;
      for (int v = 0; v < kVectors; ++v) {
        store(scratch_.totals + w * width + v * kLanes<T>, of_word[v]);
        if (counts) total[v] += of_word[v];
      }
    }
    for (int v = 0; v < kVectors; ++v) store(scratch_.total + v * kLanes<T>, total[v]);
  }

  const uint32_t* bits_;
  int64_t words_, rows_, listed_;
  const SelectionScratch<T>& scratch_;
  // Per 32 rows, words: with few bits; with nearly full rows; with all bits. The rest is dense.
  uint32_t sparse_[kLargestTile / 32] = {}, full_[kLargestTile / 32] = {};
  uint32_t whole_[kLargestTile / 32] = {}, dense_[kLargestTile / 32] = {};
  uint32_t any_full_ = 0, any_dense_ = 0;
  uint32_t mostly_full_ = 0;  // words that are full in most rows
  bool has_lists_ = false;
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
