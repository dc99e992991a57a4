// Pairs whose side of the margin is certain without looking at them one by one. For row i and a
// unit J of neighbouring rows, with the extrema of every column of L over the unit,
//
//   h_i - P_i . max_J L  <=  KL(P_i || P_j)  <=  h_i - P_i . min_J L     for all j in J,
//
// since P >= 0: two sums in place of |J|. Rows that are alike stand together (Likeness), so in a
// trained network's batches most units are certain; random logits have none. Units are words of 32
// rows; and in large batches first whole tiles.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

// The bounds of eight units are computed together: P . bound of columns 0 .. 7, -max_J L, and of
// 8 .. 15, min_J L. With t = h_i - margin, no pair is active where the former is above -t, and all
// pairs are where the latter is above t.
constexpr int64_t kUnits = 8, kBounds = 2 * kUnits;

// For one row: bit u where no pair of unit u is active, bit 8 + u where all are.
typedef uint16_t Certain;

inline Certain certain_of_all(const Certain* certain, int64_t rows) {
  uint32_t all = 0xffff;
  for (int64_t r = 0; r < rows; ++r) all &= certain[r];
  return static_cast<Certain>(all);
}

// What is certain of all pairs of a tile at once.
enum class TileState { open, active, inactive };

// Of so many units; or, from `first` on, of one.
inline TileState state_of(Certain all, int64_t units, int64_t first = 0) {
  const uint32_t wanted = ((uint32_t{1} << units) - 1) << first;
  if ((all & wanted) == wanted) return TileState::inactive;
  return (all >> kUnits & wanted) == wanted ? TileState::active : TileState::open;
}

// Maxima and minima over some rows: extremum(column, max, min) for every vector of columns.
template <class T, class Extremum>
PAIRLOSS_INLINE void for_extrema(const Panels<T>& panels, const T* l, Span rows,
                                 Extremum&& extremum) {
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int64_t width = panels.width(panel);
    for (int64_t c = 0; c < width; c += kLanes<T>) {
      const T* from = l + panels.at(panel, rows.begin) + c;
      Vec<T> max = load(from), min = max;
      for (int64_t r = 1; r < rows.size(); ++r) {
        const Vec<T> x = load(from + r * width);
        max = x > max ? x : max;
        min = x < min ? x : min;
      }
      extremum(panel * Panels<T>::kWidth + c, max, min);
    }
  }
}

// Units of `size` rows each.
struct Units {
  int64_t rows, size;

  int64_t groups() const { return (rows + size * kUnits - 1) / (size * kUnits); }
};

template <class T>
struct VectorBounds {
  Panels<T> panels;
  Units units;
  T* bounds = nullptr;  // [group of units][column][kBounds]

  void lay_out(Arena& arena) { bounds = arena.take<T>(units.groups() * panels.columns * kBounds); }

  T* group(int64_t unit) const { return bounds + unit / kUnits * panels.columns * kBounds; }

  // Of the rows of a unit.
  void set(const T* l, Span rows) const {
    const int64_t unit = rows.begin / units.size;
    T* const to = group(unit) + unit % kUnits;
    for_extrema(panels, l, rows, [&](int64_t column, Vec<T> max, Vec<T> min) {
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        to[(column + lane) * kBounds] = -max[lane];
        to[(column + lane) * kBounds + kUnits] = min[lane];
      }
    });
  }

  // For some rows, up to a multiple of 8, and the units of the group of `unit`.
  void find(const T* p, const T* h, T margin, Span rows, int64_t unit, Certain* certain) const {
    // Nearer to the margin the sum itself decides: it may be off by as much.
    constexpr T kDoubt = sizeof(T) == 4 ? T(1e-5) : T(1e-12);
    constexpr int64_t kVectors = kBounds / kLanes<T>;
    constexpr int64_t kRows = 8 / kVectors;
    Vec<T> sign[kVectors];
    for (int64_t i = 0; i < kBounds; ++i) {
      sign[i / kLanes<T>][i % kLanes<T>] = i < kUnits ? T(-1) : T(1);
    }
    for (int64_t row = rows.begin; row < rows.end; row += kRows) {
      Vec<T> sum[kRows][kVectors] = {};
      const T* from = group(unit);
      for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t width = panels.width(panel);
        const T* p_row = p + panels.at(panel, row);
        for (int64_t k = 0; k < width; ++k, from += kBounds) {
#pragma GCC unroll 8
          for (int64_t r = 0; r < kRows; ++r) {
            const Vec<T> factor = broadcast(p_row[r * width + k]);
            for (int64_t v = 0; v < kVectors; ++v) sum[r][v] += factor * load(from + v * kLanes<T>);
          }
        }
      }
      for (int64_t r = 0; r < kRows; ++r) {
        const T threshold = h[row + r] - margin;
        const T doubt = kDoubt * (1 + (threshold < 0 ? -threshold : threshold));
        uint32_t of_row = 0;
        for (int64_t v = 0; v < kVectors; ++v) {
          of_row |= greater_mask(sum[r][v], sign[v] * threshold + doubt) << v * kLanes<T>;
        }
        certain[row - rows.begin + r] = static_cast<Certain>(of_row);
      }
    }
  }
};

// What is certain of the words of a tile: of a group of eight, of every row.
struct CertainWords {
  static constexpr int64_t kMostGroups = kLargestTile / 32 / kUnits;

  int64_t words;
  Certain of_rows[kMostGroups][kLargestTile];

  int64_t groups() const { return (words + kUnits - 1) / kUnits; }
  int64_t words_of(int64_t group) const {
    return words - group * kUnits < kUnits ? words - group * kUnits : kUnits;
  }

  // find(word, certain) for each group of words.
  template <class Find>
  PAIRLOSS_INLINE CertainWords(int64_t words, Find&& find) : words(words) {
    for (int64_t g = 0; g < groups(); ++g) find(g * kUnits, of_rows[g]);
  }

  TileState state(int64_t rows) const {
    TileState state = TileState::open;
    for (int64_t g = 0; g < groups(); ++g) {
      const TileState of_group = state_of(certain_of_all(of_rows[g], rows), words_of(g));
      if (of_group == TileState::open || (g > 0 && of_group != state)) return TileState::open;
      state = of_group;
    }
    return state;
  }

  // The words of kRows rows whose bits are all certain; their bits are written.
  template <int kRows>
  PAIRLOSS_INLINE uint32_t write(int64_t row, uint32_t* bits) const {
    uint32_t written = 0;
    for (int64_t g = 0; g < groups(); ++g) {
      const Certain* const certain = of_rows[g] + row;
      uint32_t known = (uint32_t{1} << words_of(g)) - 1;
      for (int r = 0; r < kRows; ++r) known &= certain[r] | certain[r] >> kUnits;
      for (int r = 0; r < kRows && known != 0; ++r) {
        write_words(known, certain[r] >> kUnits, bits + r * words + g * kUnits);
      }
      written |= known << g * kUnits;
    }
    return written;
  }

 private:
  // Those of `wanted`, eight at most.
  PAIRLOSS_INLINE static void write_words(uint32_t wanted, uint32_t active, uint32_t* to) {
#if PAIRLOSS_VECTOR_BYTES == 64
    _mm256_mask_storeu_epi32(to, static_cast<__mmask8>(wanted),
                             _mm256_maskz_set1_epi32(static_cast<__mmask8>(active), -1));
#else
    for (uint32_t left = wanted; left != 0; left &= left - 1) {
      const int w = __builtin_ctz(left);
      to[w] = (active >> w & 1) != 0 ? ~uint32_t{0} : 0;
    }
#endif
  }
};

// The states of whole tiles. A row block meets one block of columns after the other, so what is
// found for eight of them is kept until it gets to the next eight. Several threads may look at one
// row block: whatever each of them finds there is the same.
class TileStates {
 public:
  // As many blocks as repay the bounds of each.
  static constexpr int64_t kLeastBlocks = 16;

  void lay_out(Arena& arena, int64_t blocks) { last_ = arena.take<std::atomic<uint64_t>>(blocks); }
  void clear(int64_t blocks) const {
    for (int64_t b = 0; b < blocks; ++b) new (last_ + b) std::atomic<uint64_t>(0);
  }

  // find(): what is certain of all rows of the row block, and the group of the column block.
  template <class Find>
  TileState state(int64_t row_block, int64_t column_block, Find&& find) const {
    const uint64_t group = static_cast<uint64_t>(column_block / kUnits) + 1;  // 0: none yet
    uint64_t last = last_[row_block].load(std::memory_order_relaxed);
    if (last >> 16 != group) {
      last = group << 16 | find();
      last_[row_block].store(last, std::memory_order_relaxed);
    }
    return state_of(static_cast<Certain>(last), 1, column_block % kUnits);
  }

 private:
  std::atomic<uint64_t>* last_ = nullptr;  // of every row block: group, and Certain
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
