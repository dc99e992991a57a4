// Pairs whose side of the margin is certain without looking at them one by one. For row i and a
// block J of 32 rows, with the extrema of every column of L over the block,
//
//   h_i - P_i . max_J L  <=  KL(P_i || P_j)  <=  h_i - P_i . min_J L     for all j in J,
//
// since P >= 0: two sums in place of 32. Rows that are alike stand together (Likeness), so in a
// trained network's batches most blocks are certain; random logits have none.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

// The bounds of eight blocks are computed together: columns 0 .. 7 are maxima, 8 .. 15 minima.
constexpr int64_t kBoundedWords = 8, kBounds = 2 * kBoundedWords;

// For one row of a tile and its words of 32 columns: bit w where all of word w is certain.
struct Certain {
  uint16_t active, inactive;
};

// The words of kRows rows whose bits are all certain; their bits are written.
template <int kRows>
PAIRLOSS_INLINE uint32_t write_certain(const Certain* certain, int64_t words, uint32_t* bits) {
  uint32_t known = (uint32_t{1} << words) - 1;
  for (int r = 0; r < kRows; ++r) known &= certain[r].active | certain[r].inactive;
  for (uint32_t left = known; left != 0; left &= left - 1) {
    const int w = __builtin_ctz(left);
    for (int r = 0; r < kRows; ++r) {
      bits[r * words + w] = (certain[r].active >> w & 1) != 0 ? ~uint32_t{0} : 0;
    }
  }
  return known;
}

// Maxima and minima over 32 rows: extremum(column, max, min) for every vector of columns.
template <class T, class Extremum>
PAIRLOSS_INLINE void for_extrema(const Panels<T>& panels, const T* l, int64_t row,
                                 Extremum&& extremum) {
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int64_t width = panels.width(panel);
    for (int64_t c = 0; c < width; c += kLanes<T>) {
      const T* from = l + panels.at(panel, row) + c;
      Vec<T> max = load(from), min = max;
      for (int64_t r = 1; r < 32; ++r) {
        const Vec<T> x = load(from + r * width);
        max = x > max ? x : max;
        min = x < min ? x : min;
      }
      extremum(panel * Panels<T>::kWidth + c, max, min);
    }
  }
}

template <class T>
struct VectorBounds {
  Panels<T> panels;
  T* bounds;  // [group of words][column][kBounds]

  // Groups begin at multiples of 8 words, as tiles that are certified do.
  void lay_out(Arena& arena) {
    const int64_t groups = (panels.rows / 32 + kBoundedWords - 1) / kBoundedWords;
    bounds = arena.take<T>(groups * panels.columns * kBounds);
  }

  T* group(int64_t word) const { return bounds + word / kBoundedWords * panels.columns * kBounds; }

  // Of the rows row .. row + 31.
  void set(const T* l, int64_t row) const {
    const int64_t word = row / 32;
    T* const to = group(word) + word % kBoundedWords;
    for_extrema(panels, l, row, [&](int64_t column, Vec<T> max, Vec<T> min) {
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        to[(column + lane) * kBounds] = max[lane];
        to[(column + lane) * kBounds + kBoundedWords] = min[lane];
      }
    });
  }

  // For the rows of a tile.
  void find(const T* p, const T* h, T margin, Span rows, Span columns, Certain* certain) const {
    // Nearer to the margin the sum itself decides: it may be off by as much.
    constexpr T kDoubt = sizeof(T) == 4 ? T(1e-5) : T(1e-12);
    constexpr int64_t kVectors = kBounds / kLanes<T>;
    constexpr int64_t kRows = 8 / kVectors;
    for (int64_t r = 0; r < round_up(rows.size(), 8); ++r) certain[r] = {0, 0};
    for (int64_t w = 0; w * 32 < columns.size(); w += kBoundedWords) {
      const T* const of_group = group(columns.begin / 32 + w);
      for (int64_t row = rows.begin; row < rows.end; row += kRows) {
        Vec<T> sum[kRows][kVectors] = {};
        const T* from = of_group;
        for (int64_t panel = 0; panel < panels.count(); ++panel) {
          const int64_t width = panels.width(panel);
          const T* p_row = p + panels.at(panel, row);
          for (int64_t k = 0; k < width; ++k, from += kBounds) {
#pragma GCC unroll 8
            for (int64_t r = 0; r < kRows; ++r) {
              const Vec<T> factor = broadcast(p_row[r * width + k]);
              for (int64_t v = 0; v < kVectors; ++v) {
                sum[r][v] += factor * load(from + v * kLanes<T>);
              }
            }
          }
        }
        for (int64_t r = 0; r < kRows; ++r) {
          const T threshold = h[row + r] - margin;
          const T doubt = kDoubt * (1 + (threshold < 0 ? -threshold : threshold));
          uint32_t above = 0, not_below = 0;
          for (int64_t v = 0; v < kVectors; ++v) {
            above |= greater_mask(sum[r][v], broadcast(threshold + doubt)) << v * kLanes<T>;
            not_below |= greater_mask(sum[r][v], broadcast(threshold - doubt)) << v * kLanes<T>;
          }
          Certain& of_row = certain[row - rows.begin + r];
          of_row.active |= static_cast<uint16_t>((above >> kBoundedWords) << w);
          of_row.inactive |= static_cast<uint16_t>((~not_below & 0xff) << w);
        }
      }
    }
  }
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
