// Which pairs are active, by Advanced Matrix Extensions: products of bfloat16 tiles, 16 x 32 by
// 32 x 16, summed in float32. Sixteen times the multiply-adds per cycle of AVX-512, at a precision
// that is too low for the loss; so operands are split:
//
//   x = hi + lo,  hi = bf16(x),  lo = bf16(x - hi):  8 bits each
//
// From hi hi + hi lo + lo hi, known as bf16x3; and where that comes too close to the margin to
// tell, again in float32.
//
// Tiles in memory: 1 KiB, 16 rows of 64 bytes. A-tiles hold 32 columns of 16 rows; B-tiles hold 16
// pairs of rows, [pair][column][2].
#pragma once

#if defined(PAIRLOSS_AMX)
namespace pairloss::cpu::PAIRLOSS_ISA {

constexpr int64_t kTileElements = 512;  // of 16 bits
constexpr int64_t kTileRows = 16, kTileDepth = 32;

// Tiles are usable between construction and destruction, on this thread.
class TileSession {
 public:
  TileSession() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

// Tiles 0 to 3 += tiles 4 and 5 times tiles 6 and 7.
PAIRLOSS_INLINE void multiply_tiles_2x2() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// The compiler does not know that tile loads read memory: everything must have been stored by then.
PAIRLOSS_INLINE void before_tile_loads() { asm volatile("" ::: "memory"); }

// Tiles 0 to 3 begin at 0, and loads may follow.
PAIRLOSS_INLINE void begin_sums() {
  before_tile_loads();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// 16 floats rounded to bfloat16, in the upper halves: floats themselves.
PAIRLOSS_INLINE __m512 round_to_bfloat16(__m512 x) {
  const __m512i halves = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
  return (__m512)_mm512_slli_epi32(halves, 16);
}

// The bounds of certificates.h are columns of B-tiles.
struct AmxBounds {
  Units units;
  int64_t steps;
  uint16_t* tiles = nullptr;  // [group of units][step]

  void lay_out(Arena& arena) {
    tiles = arena.take<uint16_t>(units.groups() * steps * kTileElements);
  }
  uint16_t* tile(int64_t unit, int64_t step) const {
    return tiles + (unit / kUnits * steps + step) * kTileElements;
  }
};

// P as A-tiles and L as B-tiles, two parts each, and the thresholds of every row.
//
// A last step of few columns has its three products side by side, as one product of
//
//   P: [hi | hi | lo]   and   L: [hi | lo | hi]
//
// Here L is log P itself, not relative to the reference: all terms P_ik L_jk are <= 0, so a
// relative error of the terms is one of the sum E_ij = sum_k P_ik L_jk. The pair is active where
// E_ij > t_i = h_i - m <= 0, and the computed sum tells so unless it is within |t_i| error of t_i.
struct AmxTiles {
  static constexpr int64_t kStepsAtOnce = 8;  // 256 columns: the B-tiles of 32 rows fill 32 KiB

  Panels<float> panels;
  const float *p, *l, *h;  // Panels; l is relative to the reference
  Reference<float> reference;
  double margin;
  int64_t steps;    // of 32 columns
  int64_t abreast;  // columns of a last step that has its products side by side, or 0
  Certifies certifies;
  uint16_t *p_tiles, *l_tiles;  // [group of 16 rows][step][part]
  AmxBounds word_bounds, tile_bounds;
  float* threshold;  // per row
  float* unclear;    // per 32 rows: sums closer to the threshold than this decide nothing

  AmxTiles(const Panels<float>& panels, double margin, Certifies certifies)
      : panels(panels),
        margin(margin),
        steps(round_up(panels.k, kTileDepth) / kTileDepth),
        abreast(panels.k % kTileDepth * 3 <= kTileDepth ? panels.k % kTileDepth : 0),
        certifies(certifies),
        word_bounds{{panels.rows, 32}, steps},
        tile_bounds{{panels.rows, certifies.tile}, steps} {}

  // Floats that find_active needs to carry sums from one group of steps to the next.
  int64_t scores_size(int64_t tile) const {
    return 2 * kBlock + (steps > kStepsAtOnce ? tile * tile : 0);
  }

  void lay_out(Arena& arena) {
    p_tiles = arena.take<uint16_t>(panels.rows * steps * kTileDepth * 2);
    l_tiles = arena.take<uint16_t>(panels.rows * steps * kTileDepth * 2);
    threshold = arena.take<float>(panels.rows);
    unclear = arena.take<float>(panels.rows / 32);
    if (certifies.words) word_bounds.lay_out(arena);
    if (certifies.tiles) tile_bounds.lay_out(arena);
  }

  // The terms' parts: 2^-16 for each operand's own rest and for lo lo; and the roundings of the
  // sum, at most one per term of a group of steps, and one per group; and those of h, one per
  // vector.
  double screen_error() const {
    const double of_group = 3.0 * (steps < kStepsAtOnce ? steps : kStepsAtOnce) * kTileDepth;
    const double groups = static_cast<double>(steps) / kStepsAtOnce + 1.0;
    return 3.1 / 65536 + (of_group + groups + 2.0 * steps) / 16777216;
  }

  uint16_t* p_tile(int64_t row, int64_t step) const {
    return p_tiles + (row / kTileRows * steps + step) * 2 * kTileElements;
  }
  uint16_t* l_tile(int64_t row, int64_t step) const {
    return l_tiles + (row / kTileRows * steps + step) * 2 * kTileElements;
  }

  void set_rows(const float* p_rows, const float* l_rows, const float* h_rows,
                const Reference<float>& of_rows) {
    p = p_rows, l = l_rows, h = h_rows, reference = of_rows;
  }

  // log P of 16 columns from what is relative to the reference.
  struct Absolute {
    __m512 of_reference = _mm512_setzero_ps();
    __mmask16 lanes = 0;

    PAIRLOSS_INLINE Absolute(const AmxTiles& tiles, int64_t column) {
      if (column >= tiles.panels.k) return;
      const Reference<float>& reference = tiles.reference;
      of_reference = load(reference.shifted + column) - static_cast<float>(reference.log_sum);
      lanes = static_cast<__mmask16>(first_lanes<float>(tiles.panels.k - column));
    }
    PAIRLOSS_INLINE __m512 operator()(__m512 relative) const {
      return _mm512_maskz_min_ps(lanes, relative + of_reference, _mm512_setzero_ps());
    }
  };

  void pack(int64_t row) {
    for (int64_t r = 0; r < 32; r += kTileRows) pack_group(row + r);
    if (certifies.words) pack_bounds(word_bounds, {row, row + 32});
  }

  // The same of the rows that are a tile's columns. After those.
  void pack_tile(Span rows) { pack_bounds(tile_bounds, rows); }

  // The bounds of the rows of a unit, as two columns of a B-tile.
  void pack_bounds(const AmxBounds& bounds, Span rows) const {
    const int64_t unit = rows.begin / bounds.units.size;
    const auto store_bounds = [&](int64_t column, __m512 bound, int64_t to_column) {
      alignas(64) uint32_t halves[16];
      _mm512_store_si512(halves, _mm512_srli_epi32((__m512i)round_to_bfloat16(bound), 16));
      uint16_t* to = bounds.tile(unit, column / kTileDepth) + to_column * 2;
      const int64_t pair = column % kTileDepth / 2;
      for (int64_t lane = 0; lane < 16; ++lane) {
        to[(pair + lane / 2) * 32 + lane % 2] = static_cast<uint16_t>(halves[lane]);
      }
    };
    const int64_t upper = unit % kUnits, lower = kUnits + upper;
    for_extrema(panels, l, rows, [&](int64_t column, Vec<float> max, Vec<float> min) {
      const Absolute absolute(*this, column);
      store_bounds(column, _mm512_setzero_ps() - absolute(max), upper);
      store_bounds(column, absolute(min), lower);
    });
    if (panels.columns % kTileDepth == 0) return;
    store_bounds(panels.columns, _mm512_setzero_ps(), upper);
    store_bounds(panels.columns, _mm512_setzero_ps(), lower);
  }

  // The tiles and thresholds of rows row .. row + 15.
  void pack_group(int64_t row) {
    Vec<float> entropy[kTileRows];
    for (Vec<float>& of_row : entropy) of_row = Vec<float>{};
    const PlaceAbreast place_p(abreast, 0, kTileRows), place_l(abreast, kTileRows, 0);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t column = step * kTileDepth;
      const bool is_abreast = abreast > 0 && step == steps - 1;
      const bool has_second = column + 16 < panels.columns;
      const int64_t first = panels.element(row, column);
      const int64_t second = has_second ? panels.element(row, column + 16) : first;
      const int64_t width = panels.width(column / Panels<float>::kWidth);
      const Absolute of_first(*this, column), of_second(*this, column + 16);
      uint16_t *to_p = p_tile(row, step), *to_l = l_tile(row, step);
      for (int64_t r = 0; r < kTileRows; ++r, to_p += kTileDepth, to_l += kTileDepth) {
        // Of the next group, if there is one. Every thread read the L of the last call.
        prefetch_to_write(to_l + steps * 2 * kTileElements);
        prefetch_to_write(to_l + (steps * 2 + 1) * kTileElements);
        const __m512 p_r = load(p + first + r * width);
        const __m512 log_p = of_first(load(l + first + r * width));
        entropy[r] += p_r * log_p;
        if (is_abreast) {
          const __m512 p_rest = p_r - round_to_bfloat16(p_r);
          const __m512 l_rest = log_p - round_to_bfloat16(log_p);
          _mm512_storeu_si512(to_p, place_p(narrow(p_r, p_rest)));
          _mm512_storeu_si512(to_l, place_l(narrow(log_p, l_rest)));
          continue;
        }
        __m512 p_second{}, l_second{};
        if (has_second) {
          p_second = load(p + second + r * width);
          l_second = of_second(load(l + second + r * width));
          entropy[r] += p_second * l_second;
        }
        store_parts(p_r, p_second, to_p);
        store_parts(log_p, l_second, to_l);
      }
      transpose_tile(l_tile(row, step));
      if (!is_abreast) transpose_tile(l_tile(row, step) + kTileElements);
    }
    // log P was rounded when the reference was subtracted and added.
    constexpr double kRounding = 4e-6;
    const double error = screen_error();
    double widest = row % 32 == 0 ? 0.0 : unclear[row / 32];
    for (int64_t r = 0; r < kTileRows; r += kLanes<double>) {
      const Vec<double> t = horizontal_sums<float>(entropy + r) - margin;
      store_rounded(threshold + row + r, t);
      const double distance = kRounding - error * _mm512_reduce_min_pd((__m512d)t);
      widest = widest > distance ? widest : distance;
    }
    unclear[row / 32] = static_cast<float>(widest);
  }

  // What is certain of the words of a tile. scratch: 512 floats.
  CertainWords find_certain_words(Span rows, Span columns, float* scratch) const {
    return {round_up(columns.size(), 32) / 32, [&](int64_t word, Certain* certain) {
              find_certain(word_bounds, rows, columns.begin / 32 + word, scratch, certain);
            }};
  }

  // What is certain of all of some rows, and of tile `tile` and its group.
  Certain find_certain_tiles(Span rows, int64_t tile, float* scratch) const {
    Certain certain[kLargestTile];
    find_certain(tile_bounds, rows, tile, scratch, certain);
    return certain_of_all(certain, rows.size());
  }

  // Bits of the pairs with KL < margin, if the tile's state is open. same_class(row, column) may be
  // asked to spare the float32 evaluation of pairs whose bit does not matter.
  template <class SameClass>
  TileState find_active(Span rows, Span columns, float* scratch, uint32_t* bits,
                        SameClass&& same_class) const {
    float* const scores = scratch + 2 * kBlock;
    const int64_t words = round_up(columns.size(), 32) / 32;
    uint32_t known[kLargestTile / 32] = {};  // per 32 rows
    if (certifies.words) {
      const CertainWords certain = find_certain_words(rows, columns, scratch);
      const TileState state = certain.state(rows.size());
      if (state != TileState::open) return state;
      for (int64_t r = 0; r < rows.size(); r += 32) {
        known[r / 32] = certain.write<32>(r, bits + r * words);
      }
    }
    const TileSession session;
    for (int64_t first = 0; first < steps; first += kStepsAtOnce) {
      const int64_t last = first + kStepsAtOnce < steps ? first + kStepsAtOnce : steps;
      // The sums of a block of 32 x 32, `r` rows and `c` words into the tile.
      const auto finish = [&](float* sums, int64_t r, int64_t c) __attribute__((always_inline)) {
        float* const saved = scores + (r * words + c * 32) * 32;
        if (first > 0) {
          for (int64_t i = 0; i < kBlock; i += 16)
            store(sums + i, load(sums + i) + load(saved + i));
        }
        if (last < steps) {
          for (int64_t i = 0; i < kBlock; i += 16) store(saved + i, load(sums + i));
        } else {
          decide(rows.begin + r, columns.begin + c * 32, sums, bits + r * words + c, words,
                 same_class);
        }
      };
      // One block behind: the vector units finish a block while the matrix unit multiplies the
      // next.
      float *sums = scratch, *ready = scratch + kBlock;
      int64_t ready_row = -1, ready_word = 0;
      for (int64_t c = 0; c < words; ++c) {
        for (int64_t r = 0; r < round_up(rows.size(), 32); r += 32) {
          if ((known[r / 32] >> c & 1) != 0) continue;
          multiply(rows.begin + r, columns.begin + c * 32, first, last);
          if (ready_row >= 0) finish(ready, ready_row, ready_word);
          store_sums(sums);
          float* const spare = ready;
          ready = sums, sums = spare;
          ready_row = r, ready_word = c;
        }
      }
      if (ready_row >= 0) finish(ready, ready_row, ready_word);
    }
    return TileState::open;
  }

 private:
  // Of some rows and the units of the group of `unit`, from the upper parts of both operands. All
  // terms of a bound have one sign, so their relative error, 2^-8 of each operand, is one of the
  // sum.
  void find_certain(const AmxBounds& bounds, Span rows, int64_t unit, float* sums,
                    Certain* certain) const {
    const float error = 2.0f * (1.01f / 256 + static_cast<float>(panels.columns) / 8388608);
    const __m512 factor =
        _mm512_mask_blend_ps(0x00ff, _mm512_set1_ps(1.0f - error), _mm512_set1_ps(-1.0f - error));
    const __m512 rounding = _mm512_set1_ps(1e-5f);
    const int64_t next = steps * 2 * kTileElements;  // to the next group of 16 rows
    const TileSession session;
    for (int64_t row = rows.begin; row < rows.end; row += 32, certain += 32) {
      before_tile_loads();
      _tile_zero(0);
      _tile_zero(1);
      const uint16_t *a = p_tile(row, 0), *b = bounds.tile(unit, 0);
      for (int64_t step = 0; step < steps; ++step, a += 2 * kTileElements, b += kTileElements) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a, 64);
        _tile_loadd(5, a + next, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
      }
      _tile_stored(0, sums, 64);
      _tile_stored(1, sums + 256, 64);
      for (int64_t r = 0; r < 32; ++r) {
        const __m512 bound = _mm512_fmadd_ps(_mm512_set1_ps(threshold[row + r]), factor, rounding);
        certain[r] =
            static_cast<Certain>(_mm512_cmp_ps_mask(load(sums + r * 16), bound, _CMP_GT_OQ));
      }
    }
  }

  static constexpr int64_t kBlock = 32 * 32;

  // 32 floats rounded to bfloat16, in order.
  PAIRLOSS_INLINE static __m512i narrow(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
  }

  // Both parts of 32 columns of a row, in two tiles.
  PAIRLOSS_INLINE static void store_parts(__m512 low, __m512 high, uint16_t* to) {
    const __m512i units = narrow(low, high);
    const __m512i low_units = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(units));
    const __m512i high_units = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(units, 1));
    _mm512_storeu_si512(to, units);
    _mm512_storeu_si512(to + kTileElements,
                        narrow(low - (__m512)_mm512_slli_epi32(low_units, 16),
                               high - (__m512)_mm512_slli_epi32(high_units, 16)));
  }

  // From [hi (16) | lo (16)]: hi of the columns abreast, then the units that begin at `second`,
  // then those that begin at `third`; zeros.
  struct PlaceAbreast {
    __m512i unit;
    uint32_t used;

    PAIRLOSS_INLINE PlaceAbreast(int64_t abreast, int64_t second, int64_t third) {
      const __m512i number = _mm512_load_si512(kNumbers.of);
      const auto from = [&](int64_t part) { return uint32_t{~0u} << part * abreast; };
      const auto shift = [&](int64_t by) { return _mm512_set1_epi16(static_cast<int16_t>(by)); };
      unit = _mm512_mask_add_epi16(number, from(1), number, shift(second - abreast));
      unit = _mm512_mask_add_epi16(unit, from(2), number, shift(third - 2 * abreast));
      used = ~from(3);
    }
    PAIRLOSS_INLINE __m512i operator()(__m512i units) const {
      return _mm512_maskz_permutexvar_epi16(used, unit, units);
    }
  };

  // A row of L is a column of a B-tile, by pairs of units.
  PAIRLOSS_INLINE static void transpose_tile(uint16_t* tile) {
    __m512i rows[kTileRows];
    for (int64_t r = 0; r < kTileRows; ++r) rows[r] = _mm512_loadu_si512(tile + r * kTileDepth);
    transpose_16x16(rows);
    for (int64_t r = 0; r < kTileRows; ++r) _mm512_storeu_si512(tile + r * kTileDepth, rows[r]);
  }

  // hi hi + hi lo + lo hi of 32 rows and 32 columns, summed over some steps, in tiles 0 to 3.
  PAIRLOSS_INLINE void multiply(int64_t row, int64_t column, int64_t first, int64_t last) const {
    begin_sums();
    const int64_t next = steps * 2 * kTileElements;  // to the next group of 16 rows
    const uint16_t *a = p_tile(row, first), *b = l_tile(column, first);
    const auto load_a = [&](int64_t part) {
      _tile_loadd(4, a + part * kTileElements, 64);
      _tile_loadd(5, a + next + part * kTileElements, 64);
    };
    const auto load_b = [&](int64_t part) {
      _tile_loadd(6, b + part * kTileElements, 64);
      _tile_loadd(7, b + next + part * kTileElements, 64);
    };
    const bool ends_abreast = abreast > 0 && last == steps;
    for (int64_t step = first; step < last - ends_abreast;
         ++step, a += 2 * kTileElements, b += 2 * kTileElements) {
      load_b(0);
      load_a(1);
      multiply_tiles_2x2();
      load_a(0);
      multiply_tiles_2x2();
      load_b(1);
      multiply_tiles_2x2();
    }
    if (!ends_abreast) return;
    load_b(0);
    load_a(0);
    multiply_tiles_2x2();
  }

  PAIRLOSS_INLINE static void store_sums(float* sums) {
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 16 * 32, 128);
    _tile_stored(3, sums + 16 * 32 + 16, 128);
  }

  // The words of 32 rows and 32 columns. The sums of nearly all blocks stay clear of the margin:
  // one comparison per sum, and the smallest distance of all.
  template <class SameClass>
  PAIRLOSS_INLINE void decide(int64_t row, int64_t column, const float* sums, uint32_t* bits,
                              int64_t stride, SameClass&& same_class) const {
    constexpr int kSmallerMagnitude = 0b0010;
    __m512 closest = _mm512_set1_ps(INFINITY);
    for (int64_t r = 0; r < 32; ++r) {
      const __m512 t = _mm512_set1_ps(threshold[row + r]);
      const __m512 low = _mm512_loadu_ps(sums + r * 32) - t,
                   high = _mm512_loadu_ps(sums + r * 32 + 16) - t;
      const __mmask16 low_mask = _mm512_cmp_ps_mask(low, _mm512_setzero_ps(), _CMP_GT_OQ);
      const __mmask16 high_mask = _mm512_cmp_ps_mask(high, _mm512_setzero_ps(), _CMP_GT_OQ);
      bits[r * stride] = _mm512_kunpackw(high_mask, low_mask);
      closest = _mm512_range_ps(closest, _mm512_range_ps(low, high, kSmallerMagnitude),
                                kSmallerMagnitude);
    }
    const __m512 widest = _mm512_set1_ps(unclear[row / 32]);
    if (_mm512_cmp_ps_mask(_mm512_abs_ps(closest), widest, _CMP_GT_OQ) == 0xffff) return;
    for (int64_t r = 0; r < 32; ++r) {
      const __m512 t = _mm512_set1_ps(threshold[row + r]);
      const __m512 low = _mm512_abs_ps(load(sums + r * 32) - t),
                   high = _mm512_abs_ps(load(sums + r * 32 + 16) - t);
      const uint32_t left = _mm512_kunpackw(_mm512_cmp_ps_mask(high, widest, _CMP_LE_OQ),
                                            _mm512_cmp_ps_mask(low, widest, _CMP_LE_OQ));
      decide_in_float(PairOperands<float>{panels, p, l, h, nullptr}, margin, row + r, column, left,
                      bits[r * stride], same_class);
    }
  }
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
#endif  // PAIRLOSS_AMX
