// The loss and its gradient on the CPU, for one instruction set. In four stages:
//
//   rows     P, L and h of every row                                 rows.h
//   means    similar pairs in closed form                            similar.h
//   tiles    dissimilar pairs, tile by tile in a fixed order         schedule.h
//            active or not: one bit each                             tile.h, amx.h
//            sums of L and P over the bits                           selected_sums.h
//   finish   the loss and the gradient of every row from these sums
//
// With a_ij = 1 where the dissimilar pair (i, j) is active,
//
//   W_i = sum_j a_ij (L_i - L_j),   V_i = sum_j a_ji (P_i - P_j),   F_i = n (L_i - mean L) - W_i,
//   hinge:      sum_j a_ij (m - D_ij) = m sum_j a_ij - P_i . W_i,   so D itself is never kept
//   gradient:   dz_i = P_i * (F_i - P_i . F_i) + n (P_i - mean P) - V_i
//
// and without the first summand if only KL's second argument counts.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {
namespace {

// Rows of a tile, whatever the number of threads. A tile adds to accumulators that do not stay in
// the cache where K is large: larger tiles, fewer visits.
inline int64_t tile_size(int64_t rows, int64_t k) {
  if (rows <= 128) return 64;
  if (rows <= 512) return 128;
  return k < 1024 ? 256 : kLargestTile;
}

// Scratch of one worker.
template <class T>
struct Scratch {
  T *z, *e;                  // one row
  T* scores;                 // of one tile
  uint32_t *bits, *flipped;  // tile x tile bits, and their transpose
  SelectionScratch<T> selection;
};

// What finds the active pairs, in double and in float.
#if defined(PAIRLOSS_AMX)
template <class T>
using Tiles = std::conditional_t<std::is_same_v<T, float>, AmxTiles, VectorTiles<T>>;
#else
template <class T>
using Tiles = VectorTiles<T>;
#endif

template <class T>
struct Batch {
  const Problem& problem;
  const Workers& workers;
  const Classes& classes;
  int64_t rows, padded_rows, tile, blocks;
  Panels<T> panels;
  bool has_similar, has_dissimilar;

  T *p, *l, *h;
  T* reference;
  ClassMeans<T> means;
  double *similar, *dissimilar;  // per row: its part of the loss
  Scratch<T>* scratch;
  bool* infinite;  // per row: a similar pair with infinite KL. Null if there is none.

  Batch(const Problem& problem, const Workers& workers)
      : problem(problem),
        workers(workers),
        classes(*problem.classes),
        rows(classes.rows()),
        padded_rows(round_up(rows, 32)),
        tile(tile_size(rows, problem.k)),
        blocks((rows + tile - 1) / tile),
        panels(padded_rows, problem.k),
        means{Panels<T>(classes.count(), problem.k), nullptr, nullptr, nullptr, nullptr, nullptr} {
    has_similar = classes.count() < rows;
    has_dissimilar = classes.count() > 1;
    infinite = nullptr;
  }

  Span block(int64_t b) const { return {b * tile, (b + 1) * tile < rows ? (b + 1) * tile : rows}; }
  bool has_partners(int64_t position) const { return classes.size(classes.of[position]) > 1; }

  // scores_size: of every worker's scratch. selects: whether active pairs are summed, not only
  // counted.
  void lay_out(Arena& arena, int64_t scores_size, bool selects) {
    p = arena.take<T>(panels.size());
    l = arena.take<T>(panels.size());
    h = arena.take<T>(padded_rows);
    reference = arena.take<T>(panels.columns);
    if (has_similar) {
      means.l = arena.take<T>(means.panels.size());
      means.p = arena.take<T>(means.panels.size());
    }
    similar = arena.take<double>(rows);
    dissimilar = arena.take<double>(rows);
    scratch = arena.take<Scratch<T>>(workers.count);
    for (int64_t w = 0; w < workers.count; ++w) {
      Scratch<T> s{};
      s.z = arena.take<T>(panels.columns);
      s.e = arena.take<T>(panels.columns);
      s.scores = arena.take<T>(scores_size);
      if (selects) {
        s.bits = arena.take<uint32_t>(tile * tile / 32);
        s.flipped = arena.take<uint32_t>(tile * tile / 32);
        s.selection.lay_out(arena, tile);
      }
      if (scratch != nullptr) scratch[w] = s;
    }
  }
};

enum class Health { fine, nan };

// P, L, h of all rows, and what `tiles` packs of them, in tasks of 32 rows.
template <class T, class Tiles>
Health make_rows(Batch<T>& batch, Tiles& tiles, RowFlags& flags) {
  const Problem& problem = batch.problem;
  Reference<T> reference{batch.reference, 0.0};
  reference.set(problem, batch.panels, batch.scratch[0].z, batch.scratch[0].e);
  tiles.set_rows(batch.p, batch.l, batch.h, reference);
  std::atomic<bool> nan{false}, masked{false};
  std::atomic<int64_t> next{0};
  const int64_t tasks = batch.padded_rows / 32;
  on_every_worker(tasks > 1 ? batch.workers : Workers{}, [&](int64_t worker) {
    const Scratch<T>& scratch = batch.scratch[worker];
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      for (int64_t i = task * 32; i < (task + 1) * 32; ++i) {
        if (i < batch.rows) {
          const RowFlags row = make_row(problem, batch.panels, reference, i, scratch.z, scratch.e,
                                        batch.p, batch.l, batch.h);
          if (row.nan) nan.store(true, std::memory_order_relaxed);
          if (row.masked) masked.store(true, std::memory_order_relaxed);
        } else {
          batch.h[i] = 0;
          for_each_vector(batch.panels, i, [&](int64_t at, int64_t) {
            store(batch.p + at, Vec<T>{});
            store(batch.l + at, Vec<T>{});
          });
        }
      }
      if (batch.has_dissimilar) tiles.pack(task * 32);
    }
  });
  flags = {nan.load(), masked.load()};
  return flags.nan ? Health::nan : Health::fine;
}

template <class T>
void make_means(Batch<T>& batch, const T* u) {
  if (!batch.has_similar) return;
  for_each_task(batch.workers, batch.panels.count(), [&](int64_t panel) {
    average_classes(batch.classes, batch.panels, batch.l, batch.p, u, panel, batch.means);
  });
}

// Everything about infinite pairs, for batches with masked classes.
template <class T>
struct Infinities {
  Buffer memory;
  Supports supports;
  uint64_t* scratch;

  explicit Infinities(Batch<T>& batch)
      : memory((Supports(batch.rows, batch.problem.k).size() + 2 * ((batch.problem.k + 63) / 64)) *
                   sizeof(uint64_t) +
               batch.rows),
        supports(batch.rows, batch.problem.k) {
    uint64_t* words = reinterpret_cast<uint64_t*>(memory.data());
    supports.place(words);
    scratch = words + supports.size();
    batch.infinite = reinterpret_cast<bool*>(scratch + 2 * supports.words());
    for (int64_t i = 0; i < batch.rows; ++i) {
      supports.set_row(batch.problem, batch.panels, i, batch.p, batch.scratch[0].z,
                       batch.scratch[0].e);
    }
    for (int64_t c = 0; c < batch.classes.count(); ++c) {
      supports.find_infinite_in_class({batch.classes.begin[c], batch.classes.begin[c + 1]}, scratch,
                                      scratch + supports.words(), batch.infinite);
    }
  }
};

// The bits of a tile without the pairs that are similar, or lie beyond the last row or column.
template <class T>
void clear_similar(const Batch<T>& batch, Span rows, Span columns, uint32_t* bits) {
  const int64_t words = round_up(columns.size(), 32) / 32;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    uint32_t* row = bits + (r - rows.begin) * words;
    const int64_t c = batch.classes.of[r];
    const int64_t begin = batch.classes.begin[c], end = batch.classes.begin[c + 1];
    if (begin < columns.end && end > columns.begin) {
      clear_bits(row, begin > columns.begin ? begin - columns.begin : 0,
                 end < columns.end ? end - columns.begin : columns.size());
    }
    clear_bits(row, columns.size(), words * 32);
  }
  const int64_t padded = round_up(rows.size(), 32);
  for (int64_t w = rows.size() * words; w < padded * words; ++w) bits[w] = 0;
}

// Whether a tile holds no dissimilar pair: all its rows and columns are of one class.
template <class T>
bool is_one_class(const Batch<T>& batch, Span rows, Span columns) {
  const auto& of = batch.classes.of;
  return of[rows.begin] == of[rows.end - 1] && of[rows.begin] == of[columns.begin] &&
         of[rows.begin] == of[columns.end - 1];
}

double sum_in_order(const double* x, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

constexpr PairSums kNanSums{NAN, NAN, 0};

// ---- The value ----------------------------------------------------------------------------------

// Adds the hinges of one row of a tile, whose scores are sum_k P_rk L_ck, to column_sums if there
// are any, and returns their sum. Columns from `begin` to `end` are similar and do not count.
template <class T>
PAIRLOSS_INLINE double add_hinges(const T* scores, T offset, Span columns, Span similar,
                                  T* column_sums, int64_t& active) {
  typedef typename Simd<T>::I I;
  // Positions fit: 2^31 rows of one column are 8 GiB, and a thousand years of pairs.
  const auto narrow = [](int64_t x) { return static_cast<decltype(I{}[0] + 0)>(x); };
  I column{};
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) column[lane] = narrow(columns.begin + lane);
  Vec<T> sum{};
  I count{};
  for (int64_t c = 0; c < columns.size(); c += kLanes<T>, column += narrow(kLanes<T>)) {
    const Vec<T> hinge = load(scores + c) + offset;
    const I counts = (hinge > 0) & (column < narrow(columns.end)) &
                     ((column < narrow(similar.begin)) | (column >= narrow(similar.end)));
    const Vec<T> counted = counts ? hinge : Vec<T>{};
    sum += counted;
    count -= counts;
    if (column_sums != nullptr) store(column_sums + c, load(column_sums + c) + counted);
  }
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) active += count[lane];
  return horizontal_sum<T>(sum);
}

template <class T>
PairSums evaluate(const Problem& problem, const Workers& workers, double* row_losses) {
  Batch<T> batch(problem, workers);
  const Classes& classes = batch.classes;
  for (int64_t i : classes.ignored) {
    if (row_losses != nullptr) row_losses[i] = 0.0;
  }
  if (batch.rows < 2) {
    for (int64_t i : classes.row) {
      if (row_losses != nullptr) row_losses[i] = 0.0;
    }
    return {};
  }

  VectorTiles<T> tiles(batch.panels, problem.margin);
  double* by_column;
  T* column_sums;  // of one tile, per worker
  int64_t* active;
  const auto lay_out = [&](Arena& arena) {
    batch.lay_out(arena, batch.tile * batch.tile, false);
    tiles.lay_out(arena);
    by_column = arena.take<double>(batch.rows);
    column_sums = arena.take<T>(workers.count * batch.tile);
    active = arena.take<int64_t>(batch.rows);
  };
  Arena size;
  lay_out(size);
  const Buffer buffer(size.used());
  Arena arena(buffer.data());
  lay_out(arena);

  RowFlags flags;
  if (make_rows(batch, tiles, flags) == Health::nan) {
    for (int64_t i : classes.row) {
      if (row_losses != nullptr) row_losses[i] = NAN;
    }
    return kNanSums;
  }
  make_means<T>(batch, nullptr);
  std::optional<Infinities<T>> infinities;
  if (flags.masked) infinities.emplace(batch);

  for (int64_t i = 0; i < batch.rows; ++i) {
    batch.dissimilar[i] = by_column[i] = 0.0;
    active[i] = 0;
  }
  const T m = static_cast<T>(problem.margin);
  const auto add_tile = [&](int64_t worker, const Tile& tile, Turn& row_turn, Turn& column_turn) {
    const Span rows = batch.block(tile.row_block), columns = batch.block(tile.column_block);
    T* scores = batch.scratch[worker].scores;
    T* tile_columns = column_sums + worker * batch.tile;
    const bool empty = is_one_class(batch, rows, columns);
    const int64_t stride = round_up(columns.size(), kColumnBlock<T>);
    if (!empty) {
      for_each_block(
          tiles, rows, columns, scores,
          [&](int64_t row, int64_t column,
              const RegisterBlock<T>& block) __attribute__((always_inline)) {
            block.store_to(scores + (row - rows.begin) * stride + (column - columns.begin), stride);
          });
    }
    row_turn.wait(tile.step);
    for (int64_t c = 0; c < batch.tile; ++c) tile_columns[c] = 0;
    for (int64_t r = empty ? rows.end : rows.begin; r < rows.end; ++r) {
      T* row_scores = scores + (r - rows.begin) * stride;
      const int64_t c = classes.of[r];
      if (infinities) {
        for (int64_t j = columns.begin; j < columns.end; ++j) {
          if (infinities->supports.is_infinite(r, j))
            row_scores[j - columns.begin] = -static_cast<T>(INFINITY);
        }
      }
      batch.dissimilar[r] += add_hinges<T>(
          row_scores, m - batch.h[r], columns, {classes.begin[c], classes.begin[c + 1]},
          row_losses != nullptr ? tile_columns : nullptr, active[r]);
    }
    row_turn.pass(tile.step);
    if (row_losses == nullptr) return;
    column_turn.wait(tile.step);
    for (int64_t c = columns.begin; c < columns.end; ++c)
      by_column[c] += tile_columns[c - columns.begin];
    column_turn.pass(tile.step);
  };
  if (batch.has_dissimilar) for_each_tile(workers, batch.blocks, add_tile);

  for_each_task(workers, batch.padded_rows / 32, [&](int64_t task) {
    for (int64_t i = task * 32; i < (task + 1) * 32 && i < batch.rows; ++i) {
      Vec<T> s{};
      const int64_t c = classes.of[i];
      if (batch.has_partners(i)) {
        for_each_vector(batch.panels, i, [&](int64_t at, int64_t column) {
          const int64_t mean =
              batch.means.panels.at(column / Panels<T>::kWidth, c) + column % Panels<T>::kWidth;
          s += (load(batch.p + at) - load(batch.means.p + mean)) *
               (load(batch.l + at) - load(batch.means.l + mean));
        });
      }
      batch.similar[i] = classes.size(c) * horizontal_sum<T>(s);
    }
  });
  if (row_losses != nullptr) {
    for (int64_t c = 0; c < classes.count(); ++c) {
      const int64_t begin = classes.begin[c], end = classes.begin[c + 1];
      const double others = sum_in_order(batch.similar + begin, end - begin) / (end - begin);
      for (int64_t i = begin; i < end; ++i) {
        const bool infinite = batch.infinite != nullptr && batch.infinite[i];
        row_losses[classes.row[i]] =
            infinite ? INFINITY : batch.similar[i] + others + batch.dissimilar[i] + by_column[i];
      }
    }
  }
  PairSums sums;
  for (int64_t i = 0; i < batch.rows; ++i) {
    if (batch.infinite != nullptr && batch.infinite[i]) batch.similar[i] = INFINITY;
    sums.active += active[i];
  }
  sums.similar = sum_in_order(batch.similar, batch.rows);
  sums.dissimilar = sum_in_order(batch.dissimilar, batch.rows);
  return sums;
}

// ---- The gradient -------------------------------------------------------------------------------

// For every row, sums over its active partners: of their rows of `source`, and their number. With
// row weights u also of u times the row, and of u.
template <class T>
struct Selected {
  const T* source;
  T* sum;
  int32_t* count;
  const T* weighted_source;
  T* weighted_sum;
  T* weight;

  void lay_out(Arena& arena, const Panels<T>& panels, bool weighted) {
    sum = arena.take<T>(panels.size());
    count = arena.take<int32_t>(panels.rows);
    weighted_sum = arena.take<T>(weighted ? panels.size() : 0);
    weight = arena.take<T>(weighted ? panels.rows * kLanes<T> : 0);
  }

  // A row without active partners has no sums: its memory is never touched.
  void clear(const Panels<T>& panels, int64_t row, bool weighted) {
    for_each_vector(panels, row, [&](int64_t at, int64_t) {
      store(sum + at, Vec<T>{});
      if (weighted) store(weighted_sum + at, Vec<T>{});
    });
    if (weighted) store(weight + row * kLanes<T>, Vec<T>{});
  }

  // bits: destination rows x source rows.
  void add(const Panels<T>& panels, Span destination, Span from, const uint32_t* bits, const T* u,
           const SelectionScratch<T>& scratch) {
    const Selection<T> selection(bits, round_up(from.size(), 32) / 32, destination.size(), scratch,
                                 count + destination.begin, [&](int64_t d) {
                                   clear(panels, destination.begin + d, u != nullptr);
                                 });
    selection.add(panels, source, from.begin, sum, destination.begin);
    if (u == nullptr) return;
    selection.add(panels, weighted_source, from.begin, weighted_sum, destination.begin);
    selection.add(Panels<T>(panels.rows, 1), u, from.begin, weight, destination.begin);
  }

  // sum_j a_ij (u_i + u_j) (x_i - x_j) of one vector, or without row weights sum_j a_ij (x_i -
  // x_j).
  template <bool kWeighted>
  PAIRLOSS_INLINE Vec<T> difference(Vec<T> x, int64_t row, int64_t at, T u) const {
    const T n = static_cast<T>(count[row]);
    if (count[row] == 0) return Vec<T>{};
    if constexpr (kWeighted) {
      return x * (u * n + weight[row * kLanes<T>]) - (load(sum + at) * u + load(weighted_sum + at));
    } else {
      return x * n - load(sum + at);
    }
  }
};

// What the last stage needs of the others.
template <class T>
struct Finish {
  const Batch<T>& batch;
  const Selected<T>&w, &v;  // of L over a_ij, of P over a_ji
  const T* u;               // panels of one vector; null without row weights
  T scale;
  T* grad;

  template <bool kWeighted, bool kSecondOnly>
  void row(int64_t i) const {
    const Classes& classes = batch.classes;
    const ClassMeans<T>& means = batch.means;
    const int64_t c = classes.of[i], n = classes.size(c), k = batch.problem.k;
    T* to = grad + classes.row[i] * k;
    const bool partners = n > 1;
    const T u_i = kWeighted ? u[i * kLanes<T>] : T(1);
    const T similar_weight = kWeighted && partners ? n * u_i + means.weight[c] : static_cast<T>(n);

    const auto mean_at = [&](int64_t column) {
      return means.panels.at(column / Panels<T>::kWidth, c) + column % Panels<T>::kWidth;
    };
    // sum_j g_ij (X_i - X_j) over the similar j; X is L or P.
    const auto similar_difference = [&](Vec<T> x, const T* mean, const T* weighted,
                                        int64_t column) {
      Vec<T> difference = (x - load(mean + mean_at(column))) * similar_weight;
      if constexpr (kWeighted) difference -= load(weighted + mean_at(column));
      return difference;
    };
    const auto first = [&](Vec<T> l, int64_t at, int64_t column) {
      Vec<T> f = -w.template difference<kWeighted>(l, i, at, u_i);
      if (partners) f += similar_difference(l, means.l, means.weighted_l, column);
      return f;
    };
    const auto second = [&](Vec<T> p, int64_t at, int64_t column) {
      Vec<T> f = -v.template difference<kWeighted>(p, i, at, u_i);
      if (partners) f += similar_difference(p, means.p, means.weighted_p, column);
      return f;
    };

    Vec<T> p_first{}, hinge{}, spread{};
    for_each_vector(batch.panels, i, [&](int64_t at, int64_t column) {
      const Vec<T> p = load(batch.p + at), l = load(batch.l + at);
      if (partners) {
        spread += (p - load(means.p + mean_at(column))) * (l - load(means.l + mean_at(column)));
      }
      if constexpr (kSecondOnly) {
        hinge += l * v.template difference<kWeighted>(p, i, at, u_i);
      } else {
        p_first += p * first(l, at, column);
        hinge += p * w.template difference<kWeighted>(l, i, at, u_i);
      }
    });
    const double active = w.count[i];
    double divergence =
        horizontal_sum<T>(hinge);  // its sum over rows is that of D over the active pairs
    if constexpr (kSecondOnly)
      divergence += (active - v.count[i]) * static_cast<double>(batch.h[i]);
    batch.dissimilar[i] = batch.problem.margin * active - divergence;
    batch.similar[i] = n * horizontal_sum<T>(spread);

    const bool infinite = batch.infinite != nullptr && batch.infinite[i];
    if (infinite) batch.similar[i] = INFINITY;
    const T d =
        infinite && !kSecondOnly ? static_cast<T>(NAN) : static_cast<T>(horizontal_sum<T>(p_first));
    for_each_vector(batch.panels, i, [&](int64_t at, int64_t column) {
      const Vec<T> p = load(batch.p + at);
      Vec<T> z = second(p, at, column);
      if constexpr (!kSecondOnly) z += p * (first(load(batch.l + at), at, column) - d);
      z *= scale;
      const int64_t left = k - column;
      __builtin_memcpy(to + column, &z, left < kLanes<T> ? left * sizeof(T) : sizeof z);
    });
  }

  void rows(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      if (u != nullptr) {
        batch.problem.second_only ? row<true, true>(i) : row<true, false>(i);
      } else {
        batch.problem.second_only ? row<false, true>(i) : row<false, false>(i);
      }
    }
  }
};

template <class T>
PairSums differentiate(const Problem& problem, const Workers& workers, double scale,
                       const void* row_weights, void* grad_memory) {
  Batch<T> batch(problem, workers);
  const Classes& classes = batch.classes;
  const Panels<T>& panels = batch.panels;
  T* grad = static_cast<T*>(grad_memory);
  const T* weights = static_cast<const T*>(row_weights);
  const bool weighted = weights != nullptr;
  const auto fill = [&](int64_t row, T value) {
    for (int64_t c = 0; c < problem.k; ++c) grad[row * problem.k + c] = value;
  };
  for (int64_t i : classes.ignored) fill(i, 0);
  if (batch.rows < 2) {
    for (int64_t i : classes.row) fill(i, 0);
    return {};
  }

  Tiles<T> tiles(panels, problem.margin);
  Selected<T> w, v;
  T *u, *weighted_l, *weighted_p;
  const auto lay_out = [&](Arena& arena) {
    batch.lay_out(arena, tiles.scores_size(batch.tile), true);
    tiles.lay_out(arena);
    w.lay_out(arena, panels, weighted);
    v.lay_out(arena, panels, weighted);
    u = arena.take<T>(weighted ? panels.rows * kLanes<T> : 0);
    weighted_l = arena.take<T>(weighted ? panels.size() : 0);
    weighted_p = arena.take<T>(weighted ? panels.size() : 0);
    if (weighted && batch.has_similar) {
      batch.means.weighted_l = arena.take<T>(batch.means.panels.size());
      batch.means.weighted_p = arena.take<T>(batch.means.panels.size());
      batch.means.weight = arena.take<T>(classes.count());
    }
  };
  Arena size;
  lay_out(size);
  const Buffer buffer(size.used());
  Arena arena(buffer.data());
  lay_out(arena);
  if (!weighted) u = nullptr;

  RowFlags flags;
  if (make_rows(batch, tiles, flags) == Health::nan) {
    for (int64_t i : classes.row) fill(i, static_cast<T>(NAN));
    return kNanSums;
  }
  w.source = batch.l, w.weighted_source = weighted_l;
  v.source = batch.p, v.weighted_source = weighted_p;
  for (int64_t i = 0; i < panels.rows; ++i) w.count[i] = v.count[i] = 0;
  for_each_task(workers, weighted ? batch.padded_rows / 32 : 0, [&](int64_t task) {
    for (int64_t i = task * 32; i < (task + 1) * 32; ++i) {
      const T weight = i < batch.rows ? weights[classes.row[i]] : T(0);
      store(u + i * kLanes<T>, broadcast(weight));
      for_each_vector(panels, i, [&](int64_t at, int64_t) {
        store(weighted_l + at, load(batch.l + at) * weight);
        store(weighted_p + at, load(batch.p + at) * weight);
      });
    }
  });
  make_means(batch, u);
  std::optional<Infinities<T>> infinities;
  if (flags.masked) infinities.emplace(batch);

  const auto add_tile = [&](int64_t worker, const Tile& tile, Turn& row_turn, Turn& column_turn) {
    const Span rows = batch.block(tile.row_block), columns = batch.block(tile.column_block);
    const Scratch<T>& scratch = batch.scratch[worker];
    const bool empty = is_one_class(batch, rows, columns);
    if (!empty) {
      const auto does_not_matter = [&](int64_t i, int64_t j) {
        return i >= batch.rows || j >= batch.rows || classes.of[i] == classes.of[j];
      };
      tiles.find_active(rows, columns, scratch.scores, scratch.bits, does_not_matter);
      clear_similar(batch, rows, columns, scratch.bits);
      if (infinities) infinities->supports.clear_infinite(rows, columns, scratch.bits);
      transpose_bits(scratch.bits, round_up(rows.size(), 32), round_up(columns.size(), 32),
                     scratch.flipped);
    }
    row_turn.wait(tile.step);
    if (!empty) w.add(panels, rows, columns, scratch.bits, u, scratch.selection);
    row_turn.pass(tile.step);
    column_turn.wait(tile.step);
    if (!empty) v.add(panels, columns, rows, scratch.flipped, u, scratch.selection);
    column_turn.pass(tile.step);
  };
  if (batch.has_dissimilar) for_each_tile(workers, batch.blocks, add_tile);

  const Finish<T> finish{batch, w, v, u, static_cast<T>(scale), grad};
  for_each_task(workers, batch.padded_rows / 32, [&](int64_t task) {
    const int64_t end = (task + 1) * 32;
    finish.rows(task * 32, end < batch.rows ? end : batch.rows);
  });
  PairSums sums;
  sums.similar = sum_in_order(batch.similar, batch.rows);
  sums.dissimilar = sum_in_order(batch.dissimilar, batch.rows);
  for (int64_t i = 0; i < batch.rows; ++i) sums.active += w.count[i];
  return sums;
}

PairSums value(const Problem& problem, const Workers& workers, double* row_losses) {
  return problem.element == Element::float64 ? evaluate<double>(problem, workers, row_losses)
                                             : evaluate<float>(problem, workers, row_losses);
}

PairSums gradient(const Problem& problem, const Workers& workers, double scale,
                  const void* row_weights, void* grad) {
  return problem.element == Element::float64
             ? differentiate<double>(problem, workers, scale, row_weights, grad)
             : differentiate<float>(problem, workers, scale, row_weights, grad);
}

}  // namespace

const Kernels kernels{value, gradient};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
