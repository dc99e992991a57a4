// One tile of the pair matrix: which of its ordered pairs have KL(P_r || P_c) < margin, and the
// hinge of those.
//
// KL(P_r || P_c) = h_r - sum_k P_rk L_ck. The sums are a matrix product, computed in blocks of
// kRowBlock x kColumnBlock that live in registers; a pair is active where the sum is above h_r -
// margin.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

// 32, 16 or 8 vector registers hold 16, 8 or 8 accumulators.
constexpr int64_t kRowBlock = PAIRLOSS_VECTOR_BYTES == 64 ? 8 : 4;
template <class T>
constexpr int64_t kColumnBlock = 2 * kLanes<T>;
// Panels whose columns of one column block (32 KiB) stay in the first-level cache while all row
// blocks pass by.
constexpr int64_t kPanelsAtOnce = 4;

template <class T>
struct PairOperands {
  Panels<T> panels;
  const T *p, *l, *h;  // p and l: Panels
  T* packed;           // pack_columns
};

template <class T>
struct RegisterBlock {
  Vec<T> sum[kRowBlock][2];

  PAIRLOSS_INLINE void clear() {
    for (auto& row : sum) row[0] = row[1] = Vec<T>{};
  }
  PAIRLOSS_INLINE void load_from(const T* scores, int64_t stride) {
    for (int64_t r = 0; r < kRowBlock; ++r) {
      for (int v = 0; v < 2; ++v) sum[r][v] = load(scores + r * stride + v * kLanes<T>);
    }
  }
  PAIRLOSS_INLINE void store_to(T* scores, int64_t stride) const {
    for (int64_t r = 0; r < kRowBlock; ++r) {
      for (int v = 0; v < 2; ++v) store(scores + r * stride + v * kLanes<T>, sum[r][v]);
    }
  }
  // Adds sum_k P_rk L_ck over the columns of the panels first .. last - 1.
  PAIRLOSS_INLINE void accumulate(const PairOperands<T>& x, int64_t row, int64_t column,
                                  int64_t first, int64_t last) {
    const T* packed =
        x.packed + column * x.panels.columns + first * Panels<T>::kWidth * kColumnBlock<T>;
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t width = x.panels.width(panel), left = x.panels.k - panel * Panels<T>::kWidth;
      const T* p = x.p + x.panels.at(panel, row);
      for (int64_t k = 0; k < width && k < left; ++k, packed += kColumnBlock<T>) {
        const Vec<T> c0 = load(packed), c1 = load(packed + kLanes<T>);
#pragma GCC unroll 8
        for (int64_t r = 0; r < kRowBlock; ++r) {
          const Vec<T> b = broadcast(p[r * width + k]);
          sum[r][0] += b * c0;
          sum[r][1] += b * c1;
        }
      }
    }
  }
};

// finished(row, column, block) for every register block of rows x columns with its complete sums,
// if it is wanted(row, column). `scores` (tile x tile) carries the sums from one group of panels to
// the next; it is not touched where one group is all.
template <class T, class Wanted, class Finished>
PAIRLOSS_INLINE void for_each_block(const PairOperands<T>& x, Span rows, Span columns, T* scores,
                                    Wanted&& wanted, Finished&& finished) {
  const int64_t count = x.panels.count();
  const int64_t stride = round_up(columns.size(), 32);
  for (int64_t first = 0; first < count; first += kPanelsAtOnce) {
    const int64_t last = first + kPanelsAtOnce < count ? first + kPanelsAtOnce : count;
    for (int64_t column = columns.begin; column < columns.end; column += kColumnBlock<T>) {
      for (int64_t row = rows.begin; row < rows.end; row += kRowBlock) {
        if (!wanted(row, column)) continue;
        T* saved = scores + (row - rows.begin) * stride + (column - columns.begin);
        RegisterBlock<T> block;
        if (first == 0) {
          block.clear();
        } else {
          block.load_from(saved, stride);
        }
        block.accumulate(x, row, column, first, last);
        if (last == count) {
          finished(row, column, block);
        } else {
          block.store_to(saved, stride);
        }
      }
    }
  }
}

// Which bounds of certificates.h are wanted, and the rows of a tile.
struct Certifies {
  bool words, tiles;
  int64_t tile;
};

template <class T>
struct VectorTiles : PairOperands<T> {
  double margin;
  Certifies certifies;
  VectorBounds<T> word_bounds, tile_bounds;

  VectorTiles(const Panels<T>& panels, double margin, Certifies certifies)
      : PairOperands<T>{panels, nullptr, nullptr, nullptr, nullptr},
        margin(margin),
        certifies(certifies),
        word_bounds{panels, {panels.rows, 32}},
        tile_bounds{panels, {panels.rows, certifies.tile}} {}

  // Numbers that find_active needs to carry sums from one group of panels to the next.
  int64_t scores_size(int64_t tile) const {
    return this->panels.count() > kPanelsAtOnce ? tile * tile : 0;
  }

  void lay_out(Arena& arena) {
    this->packed = arena.take<T>(this->panels.size());
    lay_out_bounds(arena);
  }

  void set_rows(const T* p_rows, const T* l_rows, const T* h_rows, const Reference<T>&) {
    this->p = p_rows, this->l = l_rows, this->h = h_rows;
  }

  // What find_active needs of the rows row .. row + 31, beside P, L and h.
  void pack(int64_t row) {
    for (int64_t r = 0; r < 32; r += kColumnBlock<T>) {
      pack_columns(this->panels, this->l, row + r, kColumnBlock<T>, this->packed);
    }
    if (certifies.words) word_bounds.set(this->l, {row, row + 32});
  }

  // The same of the rows that are a tile's columns. After those.
  void pack_tile(Span rows) { tile_bounds.set(this->l, rows); }

  // What is certain of the words of a tile.
  CertainWords find_certain_words(Span rows, Span columns, T*) const {
    return {round_up(columns.size(), 32) / 32, [&](int64_t word, Certain* certain) {
              find_certain(word_bounds, rows, columns.begin / 32 + word, certain);
            }};
  }

  // What is certain of all of some rows, and of tile `tile` and its group.
  Certain find_certain_tiles(Span rows, int64_t tile, T*) const {
    Certain certain[kLargestTile];
    find_certain(tile_bounds, rows, tile, certain);
    return certain_of_all(certain, rows.size());
  }

  // bits (rows x columns, padded to words) of the pairs with KL < margin, if the tile's state is
  // open. Bits of similar pairs and beyond the ends are undefined.
  template <class SameClass>
  TileState find_active(Span rows, Span columns, T* scores, uint32_t* bits, SameClass&&) const {
    const int64_t words = round_up(columns.size(), 32) / 32;
    const Known known(*this, rows, columns, scores, bits);
    if (known.state() != TileState::open) return known.state();
    const T m = static_cast<T>(margin);
    for_each_block(
        *this, rows, columns, scores,
        [&](int64_t row, int64_t column) { return !known.has(row, column); },
        [&](int64_t row, int64_t column, const RegisterBlock<T>& block)
            __attribute__((always_inline)) {
              const int64_t c = column - columns.begin;
              uint32_t* word = bits + (row - rows.begin) * words + c / 32;
#pragma GCC unroll 8
              for (int64_t r = 0; r < kRowBlock; ++r) {
                const Vec<T> threshold = broadcast(this->h[row + r] - m);
                const uint32_t mask = greater_mask(block.sum[r][0], threshold) |
                                      greater_mask(block.sum[r][1], threshold) << kLanes<T>;
                word[r * words] |= mask << c % 32;
              }
            });
    return TileState::open;
  }

 protected:
  void lay_out_bounds(Arena& arena) {
    if (certifies.words) word_bounds.lay_out(arena);
    if (certifies.tiles) tile_bounds.lay_out(arena);
  }

  // The words of a tile that are certain: their bits are written, all others are 0; unless the
  // whole tile is.
  class Known {
   public:
    Known(const VectorTiles& tiles, Span rows, Span columns, T* scratch, uint32_t* bits)
        : rows_(rows), columns_(columns) {
      const int64_t words = round_up(columns.size(), 32) / 32;
      const auto clear = [&] {
        __builtin_memset(bits, 0, round_up(rows.size(), 32) * words * sizeof(uint32_t));
      };
      if (!tiles.certifies.words) {
        clear();
        return;
      }
      const CertainWords certain = tiles.find_certain_words(rows, columns, scratch);
      state_ = certain.state(rows.size());
      if (state_ != TileState::open) return;
      clear();
      for (int64_t r = 0; r < rows.size(); r += kRowBlock) {
        words_[r / kRowBlock] = certain.template write<kRowBlock>(r, bits + r * words);
      }
    }

    // Of the rows row .. row + kRowBlock - 1 and the word that column is in.
    PAIRLOSS_INLINE bool has(int64_t row, int64_t column) const {
      return (words_[(row - rows_.begin) / kRowBlock] >> (column - columns_.begin) / 32 & 1) != 0;
    }

    TileState state() const { return state_; }

   private:
    Span rows_, columns_;
    TileState state_ = TileState::open;
    uint32_t words_[kLargestTile / kRowBlock] = {};
  };

 private:
  void find_certain(const VectorBounds<T>& bounds, Span rows, int64_t unit,
                    Certain* certain) const {
    bounds.find(this->p, this->h, static_cast<T>(margin), rows, unit, certain);
  }
};

// Whether one pair is active, from the rows themselves.
[[gnu::noinline]] inline bool is_pair_active(const PairOperands<float>& x, double margin,
                                             int64_t row, int64_t column) {
  Vec<float> sum{};
  for (int64_t panel = 0; panel < x.panels.count(); ++panel) {
    const float *p_row = x.p + x.panels.at(panel, row),
                *l_column = x.l + x.panels.at(panel, column);
    for (int64_t k = 0; k < x.panels.width(panel); k += kLanes<float>) {
      sum += load(p_row + k) * load(l_column + k);
    }
  }
  return horizontal_sum<float>(sum) > x.h[row] - margin;
}

// The bits of a word, from `column` on, that something coarser has left open.
template <class SameClass>
PAIRLOSS_INLINE void decide_in_float(const PairOperands<float>& x, double margin, int64_t row,
                                     int64_t column, uint32_t open, uint32_t& word,
                                     SameClass&& same_class) {
  for (; open != 0; open &= open - 1) {
    const int c = __builtin_ctz(open);
    if (same_class(row, column + c)) continue;
    const uint32_t bit = uint32_t{1} << c;
    word = is_pair_active(x, margin, row, column + c) ? word | bit : word & ~bit;
  }
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
