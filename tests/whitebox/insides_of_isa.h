// Fills in Insides for one instruction set. Included like cpu/isa_kernels.h: once per set, after
// the compiler was told of that set. No standard containers: their code would be compiled for it
// too.
#include "cpu/isa_kernels.h"
#include "insides.h"

namespace pairloss::cpu::PAIRLOSS_ISA {
namespace {

template <class T, class F>
void for_vectors_of(const T* x, int64_t n, T* y, F&& f) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int64_t size = (n - i < kLanes<T> ? n - i : kLanes<T>)*sizeof(T);
    Vec<T> v = broadcast(T(1));
    __builtin_memcpy(&v, x + i, size);
    v = f(v);
    __builtin_memcpy(y + i, &v, size);
  }
}

template <class T>
void exponential(const T* x, int64_t n, T* y) {
  for_vectors_of(x, n, y, [](Vec<T> v) { return exp_nonpositive(v); });
}

template <class T>
void horizontal_sums_of_rows(const T* x, int64_t rows, double* one_by_one, double* at_once) {
  for (int64_t r = 0; r < rows; ++r) one_by_one[r] = horizontal_sum<T>(load(x + r * kLanes<T>));
  for (int64_t r = 0; r < rows; r += kLanes<double>) {
    Vec<T> v[kLanes<double>];
    for (int64_t i = 0; i < kLanes<double>; ++i) v[i] = load(x + (r + i) * kLanes<T>);
    store(at_once + r, horizontal_sums<T>(v));
  }
}

void logarithm(const double* x, int64_t n, double* y) {
  for_vectors_of(x, n, y, [](Vec<double> v) { return log_from_one(v); });
}

template <class T>
void to_panels(const Panels<T>& panels, const T* x, int64_t rows, int64_t columns, T* to) {
  for (int64_t i = 0; i < panels.size(); ++i) to[i] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < columns; ++c) {
      to[panels.at(c / panels.kWidth, i) + c % panels.kWidth] = x[i * columns + c];
    }
  }
}

template <class T>
void from_panels(const Panels<T>& panels, const T* x, int64_t rows, int64_t columns, T* to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < columns; ++c) {
      to[i * columns + c] = x[panels.at(c / panels.kWidth, i) + c % panels.kWidth];
    }
  }
}

// P, L and h of all rows, in the order of their classes, as the kernel makes them.
template <class T>
struct Made {
  const Problem& problem;
  Arrangement arrangement;
  int64_t n;
  const int64_t* row;
  Panels<T> panels;
  T *p, *l, *h, *z, *shifted;
  int32_t* id;
  Buffer memory;
  Reference<T> reference;

  explicit Made(const Problem& problem, bool* nan = nullptr, bool* masked = nullptr)
      : problem(problem),
        arrangement(problem.levels, 1, problem.sides[0].n, 0, nullptr, problem.k, 32),
        n(arrangement.positions()),
        row(arrangement.row()),
        panels(round_up(n, 32), problem.k),
        memory(lay_out(Arena())) {
    lay_out(Arena(memory.data()));
    reference = {shifted, 0.0};
    reference.set(problem, panels.columns, row[0], z);
    for (int64_t i = 0; i < panels.size(); ++i) p[i] = l[i] = 0;
    for (int64_t i = 0; i < panels.rows; ++i) h[i] = 0, id[i] = -1;
    for (int64_t i = 0; i < n; ++i) {
      id[i] = problem.levels[0].id.data()[row[i]];
      const RowFlags flags = make_rows<T>(
          problem, panels, reference, nullptr, {i, i + 1}, [&](int64_t at) { return row[at]; }, z,
          p, l, h);
      if (nan != nullptr) nan[i] = flags.nan;
      if (masked != nullptr) masked[i] = flags.masked;
    }
  }

  size_t lay_out(Arena arena) {
    for (T** matrix : {&p, &l}) *matrix = arena.take<T>(panels.size());
    h = arena.take<T>(panels.rows);
    id = arena.take<int32_t>(panels.rows);
    for (T** row : {&z, &shifted}) *row = arena.take<T>(panels.columns);
    return arena.used();
  }

  Span block(int64_t begin, int64_t tile) const {
    return {begin, begin + tile < n ? begin + tile : n};
  }
};

template <class T>
void rows(const Problem& problem, const Rows<T>& to) {
  const Made<T> made(problem, to.nan, to.masked);
  from_panels(made.panels, made.p, made.n, problem.k, to.p);
  from_panels(made.panels, made.l, made.n, problem.k, to.l);
  __builtin_memcpy(to.h, made.h, made.n * sizeof(T));
  __builtin_memcpy(to.reference, made.shifted, problem.k * sizeof(T));
  *to.log_sum = made.reference.log_sum;
}

template <class T>
void means(const Problem& problem, const T* weights, const T* row_weights, const Means<T>& to) {
  const Made<T> made(problem);
  const int64_t classes = problem.levels[0].classes;
  ClassMeans<T> means{Panels<T>(classes, problem.k), classes, made.arrangement.members(0, 0),
                      made.arrangement.member_positions(0, 0)};
  T *w, *wu;
  const auto lay_out = [&](Arena arena) {
    means.lay_out(arena, true);
    for (T** vectors : {&w, &wu}) *vectors = arena.take<T>(made.n * kLanes<T>);
    return arena.used();
  };
  const Buffer memory(lay_out(Arena()));
  lay_out(Arena(memory.data()));
  for (int64_t i = 0; weights != nullptr && i < made.n; ++i) {
    store(w + i * kLanes<T>, broadcast(weights[i]));
    store(wu + i * kLanes<T>, broadcast(weights[i] * row_weights[i]));
  }
  const T* const sample = weights != nullptr ? w : nullptr;
  for (int64_t panel = 0; panel < made.panels.count(); ++panel) {
    average_classes(made.panels, made.l, made.p, sample, weights != nullptr ? wu : nullptr, panel,
                    {0, means.classes}, means);
  }
  for (int64_t c = 0; c < classes; ++c) {
    to.rest[c] = spread_of_class(made.panels, made.l, made.p, sample, means, c);
  }
  from_panels(means.panels, means.l, classes, problem.k, to.l);
  from_panels(means.panels, means.p, classes, problem.k, to.p);
  __builtin_memcpy(to.weight, means.weight, classes * sizeof(T));
  if (weights == nullptr) return;
  from_panels(means.panels, means.weighted_l, classes, problem.k, to.weighted_l);
  from_panels(means.panels, means.weighted_p, classes, problem.k, to.weighted_p);
  __builtin_memcpy(to.weighted_weight, means.weighted_weight, classes * sizeof(T));
}

// Tiles as the kernel has them.
template <class T>
struct MadeTiles {
  const Made<T> made;
  const int64_t tile;
  Tiles<T> tiles;
  T* scratch;
  uint32_t* bits;  // of one tile
  Buffer memory;

  MadeTiles(const Problem& problem, int64_t tile, bool certifies)
      : made(problem),
        tile(tile),
        tiles(made.panels, problem.margin, {certifies, certifies, tile}),
        memory(lay_out(Arena())) {
    lay_out(Arena(memory.data()));
    tiles.set_rows(made.p, made.l, made.h, made.reference);
    for (int64_t i = 0; i < made.panels.rows; i += 32) tiles.pack(i);
    for (int64_t i = 0; certifies && i < made.n; i += tile) tiles.pack_tile(made.block(i, tile));
  }

  size_t lay_out(Arena arena) {
    tiles.lay_out(arena);
    const int64_t size = tiles.scores_size(tile);
    scratch = arena.take<T>(size > 2 * 32 * 32 ? size : 2 * 32 * 32);
    bits = arena.take<uint32_t>(tile * tile / 32);
    return arena.used();
  }

  // body(rows, columns)
  template <class Body>
  void for_each_tile(Body&& body) const {
    for (int64_t r = 0; r < made.n; r += tile) {
      for (int64_t c = 0; c < made.n; c += tile) body(made.block(r, tile), made.block(c, tile));
    }
  }
};

template <class T>
void find_active(const Problem& problem, int64_t tile, bool certifies, uint32_t* bits) {
  const MadeTiles<T> x(problem, tile, certifies);
  const int64_t words = round_up(x.made.n, 32) / 32;
  x.for_each_tile([&](Span rows, Span columns) {
    const TileState state =
        x.tiles.find_active(rows, columns, x.scratch, x.bits,
                            [&](int64_t i, int64_t j) { return x.made.id[i] == x.made.id[j]; });
    const int64_t tile_words = round_up(columns.size(), 32) / 32;
    for (int64_t i = 0; i < rows.size(); ++i) {
      uint32_t* const to = bits + (rows.begin + i) * words + columns.begin / 32;
      for (int64_t w = 0; w < tile_words; ++w) {
        to[w] = state == TileState::open ? x.bits[i * tile_words + w]
                                         : -uint32_t{state == TileState::active};
      }
    }
  });
}

template <class T>
void find_certain(const Problem& problem, int64_t tile, uint16_t* active, uint16_t* inactive) {
  const MadeTiles<T> x(problem, tile, true);
  const Span block = x.made.block(0, tile);
  const CertainWords certain = x.tiles.find_certain_words(block, block, x.scratch);
  for (int64_t i = 0; i < block.size(); ++i) {
    active[i] = inactive[i] = 0;
    for (int64_t w = 0; w < certain.words; ++w) {
      const Certain of_group = certain.of_rows[w / kUnits][i];
      active[i] |= static_cast<uint16_t>((of_group >> (kUnits + w % kUnits) & 1) << w);
      inactive[i] |= static_cast<uint16_t>((of_group >> w % kUnits & 1) << w);
    }
  }
}

template <class T>
void find_tile_states(const Problem& problem, int64_t tile, int8_t* states) {
  const MadeTiles<T> x(problem, tile, true);
  const int64_t blocks = (x.made.n + tile - 1) / tile;
  TileStates known;
  const auto lay_out = [&](Arena arena) {
    known.lay_out(arena, blocks);
    return arena.used();
  };
  const Buffer memory(lay_out(Arena()));
  lay_out(Arena(memory.data()));
  known.clear(blocks);
  x.for_each_tile([&](Span rows, Span columns) {
    const int64_t row_block = rows.begin / tile, column_block = columns.begin / tile;
    const TileState state = known.state(row_block, column_block, [&] {
      return x.tiles.find_certain_tiles(rows, column_block, x.scratch);
    });
    states[row_block * blocks + column_block] =
        state == TileState::open ? 0 : (state == TileState::active ? 1 : -1);
  });
}

template <class T>
void supports(const Problem& problem, bool* infinite, bool* infinite_in_class, uint32_t* bits) {
  const Made<T> made(problem);
  Supports supports(made.n, problem.k);
  const Buffer memory((supports.size() + 2 * supports.words()) * sizeof(uint64_t) + made.n);
  uint64_t* const words = reinterpret_cast<uint64_t*>(memory.data());
  supports.place(words);
  uint64_t* const scratch = words + supports.size();
  uint8_t* const marks = reinterpret_cast<uint8_t*>(scratch + 2 * supports.words());
  for (int64_t i = 0; i < made.n; ++i) {
    supports.set_row(problem, made.panels, made.row[i], i, made.p, made.z);
    marks[i] = 0;
  }
  for (int64_t i = 0; i < made.n; ++i) {
    for (int64_t j = 0; j < made.n; ++j) infinite[i * made.n + j] = supports.is_infinite(i, j);
  }
  const int32_t *begin = made.arrangement.members(0, 0),
                *position = made.arrangement.member_positions(0, 0);
  for (int64_t c = 0; c < problem.levels[0].classes; ++c) {
    const int64_t size = begin[c + 1] - begin[c];
    supports.find_infinite(position + begin[c], size, position + begin[c], size, scratch,
                           scratch + supports.words(), marks);
  }
  for (int64_t i = 0; i < made.n; ++i) infinite_in_class[i] = marks[i] != 0;
  supports.clear_infinite({0, made.n}, {0, made.n}, bits);
}

inline void keep_dissimilar(const int32_t* ids, int64_t n, uint32_t* bits) {
  int32_t padded[kLargestTile];
  IdRange range{INT32_MAX, -1, false, n % 32 != 0};
  for (int64_t i = 0; i < kLargestTile; ++i) padded[i] = i < n ? ids[i] : -1;
  for (int64_t i = 0; i < n; ++i) {
    range.gaps |= ids[i] < 0;
    if (ids[i] >= 0 && ids[i] < range.low) range.low = ids[i];
    if (ids[i] > range.high) range.high = ids[i];
  }
  const LevelIds level{padded, &range};
  level.keep_dissimilar({0, n}, {0, n}, range, bits, bits);
}

inline void split_similarity(const int8_t* similarity, int64_t n, uint32_t* bits,
                             uint32_t* similar) {
  int64_t row[kLargestTile];
  for (int64_t i = 0; i < n; ++i) row[i] = i;
  SimilarityMatrix{similarity, n, row}.split({0, n}, {0, n}, bits, similar);
}

template <class T>
void add_selected(const T* source, const uint32_t* bits, int64_t rows, int64_t words,
                  int64_t columns, T* destination, int32_t* counts) {
  const int64_t padded_rows = round_up(rows, 32), source_rows = words * 32;
  const Panels<T> panels(padded_rows > source_rows ? padded_rows : source_rows, columns);
  T *from, *to, *largest;
  int32_t* padded_counts;
  uint32_t* padded_bits;
  SelectionScratch<T> scratch;
  const auto lay_out = [&](Arena arena) {
    from = arena.take<T>(panels.size());
    to = arena.take<T>(panels.size());
    largest = arena.take<T>(Source<T>::words(panels).size());
    padded_counts = arena.take<int32_t>(padded_rows);
    padded_bits = arena.take<uint32_t>(padded_rows * words);
    scratch.lay_out(arena, kLargestTile);
    return arena.used();
  };
  const Buffer memory(lay_out(Arena()));
  const size_t bytes = lay_out(Arena(memory.data()));
  __builtin_memset(memory.data(), 0, bytes);
  to_panels(panels, source, source_rows, columns, from);
  to_panels(panels, destination, rows, columns, to);
  __builtin_memcpy(padded_counts, counts, rows * sizeof(int32_t));
  __builtin_memcpy(padded_bits, bits, rows * words * sizeof(uint32_t));
  const auto clear = [&](int64_t row) {
    for_each_vector(panels, row, [&](int64_t at, int64_t) { store(to + at, Vec<T>{}); });
  };
  const Selection<T> selection(padded_bits, words, rows, panels.columns, scratch, padded_counts,
                               clear);
  const Source<T> of_bits{from, nullptr, largest};
  for (int64_t i = 0; i < source_rows; i += 32) of_bits.set_word(panels, i);
  selection.add(panels, of_bits, 0, to, 0);
  from_panels(panels, to, rows, columns, destination);
  __builtin_memcpy(counts, padded_counts, rows * sizeof(int32_t));
}

void halves(const uint16_t* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = half_to_float(x[i]);
}

void bfloat16s(const uint16_t* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = bfloat16_to_float(x[i]);
}

template <class T>
constexpr InsidesOf<T> insides_of() {
  return {
      kLanes<T>,      Panels<T>::kWidth, exponential<T>,  horizontal_sums_of_rows<T>, rows<T>,
      means<T>,       find_active<T>,    find_certain<T>, find_tile_states<T>,        supports<T>,
      add_selected<T>};
}

}  // namespace

const Insides insides{insides_of<float>(), insides_of<double>(), halves,           bfloat16s,
                      transpose_bits,      keep_dissimilar,      split_similarity, logarithm};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
