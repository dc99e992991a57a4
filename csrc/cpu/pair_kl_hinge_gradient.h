// The loss and its gradient, from sums of L and P over the active pairs.
//
// Which pairs are summed is a matrix of bits, a "term". One level of labels has one term a, its
// active pairs; a similarity matrix a second one, its similar pairs. Of several levels, pairs are
// active alike wherever they are dissimilar, so the first level's term serves them all, with two
// terms for each other level: the pairs that are active in this level only, and in the first only.
// Of nested levels these are few.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {
namespace {

// What finds the active pairs, in double and in float.
#if defined(PAIRLOSS_AMX)
template <class T>
using Tiles = std::conditional_t<uses<Idea::coarse_first> && std::is_same_v<T, float>, AmxTiles,
                                 VectorTiles<T>>;
#elif defined(PAIRLOSS_VNNI)
template <class T>
using Tiles = std::conditional_t<std::is_same_v<T, float>, IntegerTiles, VectorTiles<T>>;
#else
template <class T>
using Tiles = VectorTiles<T>;
#endif

template <class T>
struct Term {
  Selected<T> w, v;  // of L over the pair's second row, of P over its first
  T factor;          // of its pairs' dD in the gradient
  // Of the rows that are finished at a time: sum_ij w_i w_j (m - D_ij) over the term's pairs, and
  // how many they are.
  double* loss;
  int64_t* active;
};

template <class T>
class Differentiation {
 public:
  Differentiation(const Problem& problem, const Workers& workers, const void* row_weights,
                  PairSums* sums)
      : problem_(problem),
        batch_(problem, workers, true),
        panels_(batch_.panels),
        abreast_(rows_abreast(panels_.columns)),
        row_weights_(static_cast<const T*>(row_weights)),
        weighted_(row_weights != nullptr),
        adds_whole_tiles_(uses<Idea::certificates> && uses<Idea::whole_tiles> && batch_.certifies &&
                          problem.similarity == nullptr),
        tiles_(panels_, problem.margin,
               {uses<Idea::certificates> && batch_.certifies,
                adds_whole_tiles_ && batch_.blocks() >= TileStates::kLeastBlocks, batch_.tile}),
        term_count_(problem.similarity != nullptr ? 2 : 2 * problem.level_count - 1),
        sums_(sums) {
    // A side's rows need W for the first argument's gradient, and V for the second's.
    for (int64_t side = 0; side < 2; ++side) {
      const bool wanted = problem.sides[side].grad != nullptr;
      sums_w_[side] = wanted && !problem.second_only;
      sums_v_[side] = wanted;
    }
    // A pair's divergence comes from W of its first row, else from V of its second: one of the two
    // is needed.
    for (int64_t side = 0; side < 2; ++side) {
      by_w_[side] = sums_w_[side] || !sums_v_[batch_.partner(side)];
      if (!weighted_) sums_w_[side] = by_w_[side];
    }
  }

  void run() {
    for (int64_t g = 0; g < problem_.level_count; ++g) sums_[g] = {};
    for (int64_t side = 0; side < 2; ++side) fill_rest(side);
    if (batch_.is_empty()) return fill(0);

    Arena size;
    lay_out(size);
    const Buffer buffer(size.used());
    Arena arena(buffer.data());
    lay_out(arena);
    RowFlags flags;
    const Health health = make_rows(batch_, tiles_, flags, [&](int64_t row) {
      if (l_w_ == nullptr) set_word(&Sources<T>::x, row);
    });
    if (health == Health::nan) return fill(static_cast<T>(NAN));
    find_id_ranges(batch_);
    make_sources();
    if (tiles_.certifies.tiles) {
      states_.clear(batch_.blocks());
      for_each_task(batch_.workers, batch_.blocks(),
                    [&](int64_t, int64_t task) { tiles_.pack_tile(batch_.block(task)); });
    }
    std::optional<Infinities<T>> infinities;
    if (flags.masked) infinities.emplace(batch_);
    infinities_ = infinities ? &*infinities : nullptr;

    MeansStages<T> means(batch_, wu_, problem_.cross);
    Schedule tiles = batch_.schedule();
    Stage finish(batch_.workers, batch_.padded_rows / 32);
    on_every_worker(batch_.workers, [&](int64_t worker) {
      means.work(worker);
      tiles.work(worker, [&](int64_t, const Tile& tile) {
        add_tile(batch_.scratch[worker], tile, tiles.row_turn(tile), tiles.column_turn(tile));
      });
      means.finish(worker);
      finish.work(worker, [&](int64_t, int64_t task) {
        const Span rows{task * 32, (task + 1) * 32};
        if (batch_.has_scores() && batch_.is_row(rows.begin)) {
          tiles.wait(batch_.block_of(rows.begin));
          add_common(rows);
        }
        for (int64_t i = rows.begin; i < rows.end; i += abreast_) finish_rows(i, worker);
      });
    });
    add_up();
  }

 private:
  void lay_out(Arena& arena) {
    const int64_t rows = batch_.padded_rows;
    batch_.lay_out(arena, tiles_.scores_size(batch_.tile), true, weighted_);
    tiles_.lay_out(arena);
    if (tiles_.certifies.tiles) states_.lay_out(arena, batch_.blocks());
    const bool has_w = batch_.has_sample_weights();
    terms_ = arena.take<Term<T>>(term_count_);
    for (int64_t t = 0; t < term_count_; ++t) {
      Term<T> term{};
      // Pairs that are dissimilar in all levels are of the first term.
      const int64_t blocks = adds_whole_tiles_ && t == 0 ? batch_.blocks() : 0;
      term.w.lay_out(arena, panels_, blocks, has_w, weighted_);
      term.v.lay_out(arena, panels_, blocks, has_w, weighted_);
      term.factor = factor_of(t);
      term.loss = arena.take<double>(rows / abreast_);
      term.active = arena.take<int64_t>(rows / abreast_);
      if (terms_ != nullptr) terms_[t] = term;
    }
    similar_ = arena.take<double>(rows / abreast_ * problem_.level_count);
    const auto take = [&](bool wanted, int64_t count) {
      T* const array = arena.take<T>(wanted ? count : 0);
      return wanted ? array : nullptr;
    };
    l_w_ = take(has_w, panels_.size()), p_w_ = take(has_w, panels_.size());
    l_wu_ = take(weighted_, panels_.size()), p_wu_ = take(weighted_, panels_.size());
    wu_ = take(weighted_, rows * kLanes<T>), u_ = take(weighted_, rows);
    f_ = arena.take<T>(batch_.workers.count * abreast_ * panels_.columns);
    g_ = arena.take<T>(batch_.workers.count * abreast_ * panels_.columns);
    const auto make_source = [&](bool wanted, T* x, const Panels<T>& panels) {
      const int64_t size = Source<T>::words(panels).size();
      T* const totals = take(wanted && adds_whole_tiles_, size);
      return Source<T>{x, totals, take(wanted && kMultiplies<T>, size)};
    };
    const Panels<T> one(rows, 1);
    const Source<T> w = make_source(has_w, batch_.weight, one),
                    wu = make_source(weighted_, wu_, one);
    l_sources_ = {make_source(true, has_w ? l_w_ : batch_.l, panels_), w,
                  make_source(weighted_, l_wu_, panels_), wu};
    p_sources_ = {make_source(true, has_w ? p_w_ : batch_.p, panels_), w,
                  make_source(weighted_, p_wu_, panels_), wu};
  }

  T factor_of(int64_t t) const {
    const Level* levels = problem_.levels;
    if (problem_.similarity != nullptr) {
      return static_cast<T>(t == 0 ? -levels[0].dissimilar_scale : levels[0].similar_scale);
    }
    double factor = 0.0;
    if (t == 0) {
      for (int64_t g = 0; g < problem_.level_count; ++g) factor -= levels[g].dissimilar_scale;
    } else {
      factor = levels[(t + 1) / 2].dissimilar_scale * (t % 2 == 1 ? -1.0 : 1.0);
    }
    return static_cast<T>(factor);
  }

  // The gradient of the rows that take part.
  void fill(T value) {
    if (value != value) {
      for (int64_t g = 0; g < problem_.level_count; ++g) sums_[g] = {NAN, NAN, 0};
    }
    for (int64_t side = 0; side < 2; ++side) {
      T* const grad = static_cast<T*>(problem_.sides[side].grad);
      if (grad == nullptr) continue;
      for (int64_t i = batch_.begin[side]; i < batch_.end[side]; ++i) {
        T* const to = grad_row(i);
        for (int64_t c = 0; c < problem_.k; ++c) to[c] = value;
      }
    }
  }

  // The gradient of the rows that do not.
  void fill_rest(int64_t side) {
    T* const grad = static_cast<T*>(problem_.sides[side].grad);
    if (grad == nullptr) return;
    const int64_t n = problem_.sides[side].n, before = side == 0 ? 0 : problem_.sides[0].n;
    if (batch_.end[side] - batch_.begin[side] == n) return;
    for (int64_t i = 0; i < n; ++i) {
      bool takes_part = false;
      for (int64_t g = 0; g < problem_.level_count; ++g) {
        takes_part |= problem_.levels[g].id.data()[before + i] >= 0;
      }
      if (takes_part) continue;
      for (int64_t c = 0; c < problem_.k; ++c) grad[i * problem_.k + c] = 0;
    }
  }

  T* grad_row(int64_t position) const {
    const int64_t row = batch_.row[position], n = problem_.sides[0].n;
    T* const batch = static_cast<T*>(problem_.sides[0].grad);
    T* const reference = static_cast<T*>(problem_.sides[1].grad);
    return row < n ? batch + row * problem_.k : reference + (row - n) * problem_.k;
  }

  // L and P times the weights, and all counts 0.
  void make_sources() {
    for (int64_t t = 0; t < term_count_; ++t) {
      terms_[t].w.clear_counts(panels_.rows, batch_.blocks());
      terms_[t].v.clear_counts(panels_.rows, batch_.blocks());
    }
    if (l_w_ == nullptr && l_wu_ == nullptr) return;
    for_each_task(batch_.workers, batch_.padded_rows / 32, [&](int64_t, int64_t task) {
      for (int64_t i = task * 32; i < (task + 1) * 32; ++i) {
        const T w = batch_.sample_weight(i);
        T wu = 0;
        if (weighted_) {
          // Rows of the reference set have no loss of their own.
          const bool has_loss = batch_.is_row(i) && batch_.row[i] < problem_.sides[0].n;
          u_[i] = has_loss ? row_weights_[batch_.row[i]] : T(0);
          wu = w * u_[i];
          store(wu_ + i * kLanes<T>, broadcast(wu));
        }
        for_each_vector(panels_, i, [&](int64_t at, int64_t) {
          const Vec<T> l = load(batch_.l + at), p = load(batch_.p + at);
          if (l_w_ != nullptr) store(l_w_ + at, l * w), store(p_w_ + at, p * w);
          if (l_wu_ != nullptr) store(l_wu_ + at, l * wu), store(p_wu_ + at, p * wu);
        });
      }
      const Panels<T> one(panels_.rows, 1);
      if (l_w_ != nullptr) {
        set_word(&Sources<T>::x, task * 32);
        l_sources_.w.set_word(one, task * 32);
      }
      if (l_wu_ != nullptr) {
        set_word(&Sources<T>::weighted_x, task * 32);
        l_sources_.wu.set_word(one, task * 32);
      }
    });
  }

  // Of 32 rows of L and of P, or of what they were made into.
  void set_word(Source<T> Sources<T>::*source, int64_t row) const {
    (l_sources_.*source).set_word(panels_, row);
    (p_sources_.*source).set_word(panels_, row);
  }

  // ---- Tiles ------------------------------------------------------------------------------------

  struct Place {
    const Scratch<T>& scratch;
    Tile tile;
    Span rows, columns;
    int64_t words, size;  // of the tile's bits: of a row, of all

    int64_t padded_rows() const { return size / words; }
  };

  void add_tile(const Scratch<T>& scratch, const Tile& tile, Turn& row_turn, Turn& column_turn) {
    const Span rows = batch_.block(tile.row_block), columns = batch_.block(tile.column_block);
    const int64_t words = round_up(columns.size(), 32) / 32;
    const Place place{scratch, tile, rows, columns, words, round_up(rows.size(), 32) * words};
    const TileState state =
        batch_.has_no_dissimilar(tile) ? TileState::inactive : find_active(place);
    if (state != TileState::open) return add_whole(state, place, row_turn, column_turn);
    const uint32_t* bits = select(0, place);
    if (bits != nullptr) flip(place, bits);
    row_turn.wait(tile.row_turn);
    if (bits != nullptr) add_to_rows(0, place, bits);
    if (term_count_ == 1) row_turn.pass(tile.row_turn);
    column_turn.wait(tile.column_turn);
    if (bits != nullptr) add_to_columns(0, place);
    for (int64_t t = 1; t < term_count_; ++t) {
      bits = select(t, place);
      if (bits == nullptr) continue;
      flip(place, bits);
      add_to_rows(t, place, bits);
      add_to_columns(t, place);
    }
    if (term_count_ > 1) row_turn.pass(tile.row_turn);
    column_turn.pass(tile.column_turn);
  }

  // A tile of which no pair is looked at: all that are dissimilar are active, or none.
  void add_whole(TileState state, const Place& place, Turn& row_turn, Turn& column_turn) const {
    const Tile& tile = place.tile;
    const bool is_active = state == TileState::active;
    row_turn.wait(tile.row_turn);
    if (is_active) {
      add_whole(terms_[0].w, tile.row_block, place.rows, tile.column_block, place.columns,
                l_sources_, sums_w_[batch_.side_of_block(tile.row_block)]);
    }
    row_turn.pass(tile.row_turn);
    column_turn.wait(tile.column_turn);
    if (is_active && sums_v_[batch_.side_of_block(tile.column_block)]) {
      add_whole(terms_[0].v, tile.column_block, place.columns, tile.row_block, place.rows,
                p_sources_, true);
    }
    column_turn.pass(tile.column_turn);
  }

  void add_whole(const Selected<T>& to, int64_t block, Span rows, int64_t from_block, Span from,
                 const Sources<T>& sources, bool sums) const {
    if (batch_.is_all_dissimilar(block, from_block)) {
      to.add_to_block(panels_, block, from, sources, sums);
    } else {
      to.add_other_classes(panels_, rows, from, batch_.levels[0].id, sources, sums);
    }
  }

  bool is_added_whole(TileState state, const Tile& tile) const {
    if (!adds_whole_tiles_ || state == TileState::open) return false;
    if (state == TileState::inactive) return true;
    if (infinities_ != nullptr) return false;
    return problem_.level_count == 1 || batch_.is_all_dissimilar(tile.row_block, tile.column_block);
  }

  // Pairs with KL < margin, to scratch.active, unless the tile is added whole; of a similarity
  // matrix, only the dissimilar ones, and the similar ones to scratch.bits.
  TileState find_active(const Place& place) const {
    const Scratch<T>& scratch = place.scratch;
    const Tile& tile = place.tile;
    const int32_t* const id = batch_.levels[0].id;
    const bool one_level = problem_.level_count == 1 && problem_.similarity == nullptr;
    TileState state = TileState::open;
    if (tiles_.certifies.tiles) {
      state = states_.state(tile.row_block, tile.column_block, [&] {
        return tiles_.find_certain_tiles(place.rows, tile.column_block, scratch.scores);
      });
    }
    if (state == TileState::open) {
      state = tiles_.find_active(place.rows, place.columns, scratch.scores, scratch.active,
                                 [&](int64_t i, int64_t j) { return one_level && id[i] == id[j]; });
    }
    if (is_added_whole(state, tile)) return state;
    if (state != TileState::open) {
      __builtin_memset(scratch.active, state == TileState::active ? 0xff : 0,
                       place.size * sizeof(uint32_t));
    }
    if (problem_.similarity == nullptr) return TileState::open;
    SimilarityMatrix{problem_.similarity, problem_.sides[0].n, batch_.row}.split(
        place.rows, place.columns, scratch.active, scratch.bits);
    if (infinities_ == nullptr) return TileState::open;
    infinities_->mark_infinite(batch_, place.rows, place.columns, scratch.bits);
    infinities_->supports.clear_infinite(place.rows, place.columns, scratch.active);
    return TileState::open;
  }

  // The pairs that are active in a level.
  void keep_level(int64_t g, const Place& place, uint32_t* bits) const {
    const LevelIds& level = batch_.levels[g];
    level.keep_dissimilar(place.rows, place.columns, level.blocks[place.tile.column_block],
                          place.scratch.active, bits);
    if (infinities_ != nullptr) {
      infinities_->supports.clear_infinite(place.rows, place.columns, bits);
    }
  }

  // The bits of a term; null if there are none.
  const uint32_t* select(int64_t t, const Place& place) const {
    const Scratch<T>& scratch = place.scratch;
    if (problem_.similarity != nullptr) return t == 0 ? scratch.active : scratch.bits;
    uint32_t *bits = scratch.bits, *others = scratch.other_bits;
    if (t == 0) {
      keep_level(0, place, bits);
      return bits;
    }
    keep_level((t + 1) / 2, place, others);
    uint32_t any = 0;
    for (int64_t i = 0; i < place.size; ++i) {
      others[i] = t % 2 == 1 ? others[i] & ~bits[i] : bits[i] & ~others[i];
      any |= others[i];
    }
    return any != 0 ? others : nullptr;
  }

  void flip(const Place& place, const uint32_t* bits) const {
    transpose_bits(bits, place.padded_rows(), place.words * 32, place.scratch.flipped);
  }

  void add_to_rows(int64_t t, const Place& place, const uint32_t* bits) const {
    const bool sums = sums_w_[batch_.side_of_block(place.tile.row_block)];
    terms_[t].w.add(panels_, place.rows, place.columns, bits, l_sources_, sums,
                    place.scratch.selection);
  }

  void add_to_columns(int64_t t, const Place& place) const {
    if (!sums_v_[batch_.side_of_block(place.tile.column_block)]) return;
    terms_[t].v.add(panels_, place.columns, place.rows, place.scratch.flipped, p_sources_, true,
                    place.scratch.selection);
  }

  // ---- Rows -------------------------------------------------------------------------------------

  // What whole tiles have added to a block, to those of some positions that are its rows.
  void add_common(Span positions) const {
    const int64_t side = batch_.side_of(positions.begin);
    const int64_t block = batch_.block_of(positions.begin);
    const Span rows{positions.begin, std::min(positions.end, batch_.block(block).end)};
    terms_[0].w.add_common(panels_, block, rows, sums_w_[side]);
    if (sums_v_[side]) terms_[0].v.add_common(panels_, block, rows, true);
  }

  bool is_similar_term(int64_t t) const { return problem_.similarity != nullptr && t == 1; }

  void finish_rows(int64_t first, int64_t worker) const {
    T *const f = f_ + worker * abreast_ * panels_.columns, *const g = g_ + (f - f_);
    if (weighted_) {
      problem_.second_only ? finish_rows<true, true>(first, f, g)
                           : finish_rows<true, false>(first, f, g);
    } else {
      problem_.second_only ? finish_rows<false, true>(first, f, g)
                           : finish_rows<false, false>(first, f, g);
    }
  }

  // What the rows of one block have in common in term t, and in level t if there is one. Copies:
  // what is stored between two reads could be anything of this, as far as the compiler knows.
  struct Common {
    Term<T> term;
    Panels<T> panels;
    const T *p, *l, *h;
    double margin;
    bool sums_w, sums_v, is_last;
    bool by_w, by_partners;  // what the losses come from: W; or V of the pairs' other rows
    // The level's similar pairs. means: of the side that the partners are on; null: there are none.
    ClassMeans<T> means;
    const int32_t* id;
    int64_t least_size;
    T factor;
  };

  PAIRLOSS_INLINE Common common_of(int64_t t, int64_t side) const {
    const ClassMeans<T> none{panels_, 0, nullptr, nullptr};
    const bool has_means = t < problem_.level_count && batch_.has_means();
    return {terms_[t],
            panels_,
            batch_.p,
            batch_.l,
            batch_.h,
            is_similar_term(t) ? 0.0 : problem_.margin,
            sums_w_[side],
            sums_v_[side],
            t + 1 == term_count_,
            by_w_[side],
            !by_w_[batch_.partner(side)],
            has_means ? batch_.means_of(t, batch_.partner(side)) : none,
            has_means ? batch_.levels[t].id : nullptr,
            problem_.cross ? 1 : 2,
            has_means ? static_cast<T>(problem_.levels[t].similar_scale) : T(0)};
  }

  // A row's similar pairs in one level: its class, -1 if there are none, and what their differences
  // weigh.
  struct SimilarPart {
    int64_t c;
    T weight;
  };

  template <bool kWeighted>
  PAIRLOSS_INLINE static SimilarPart similar_part(const Common& common, int64_t i, T u) {
    const ClassMeans<T>& means = common.means;
    const int64_t c = common.id != nullptr ? common.id[i] : -1;
    if (c < 0 || means.size(c) < common.least_size) return {-1, 0};
    T weight = means.weight[c];
    if constexpr (kWeighted) weight = weight * u + means.weighted_weight[c];
    return {c, weight};
  }

  // Sums over a row's columns, by lanes: of P times the differences of L to its partners of one
  // term, of L times those of P, and of its similar pairs in one level s_i and P times their
  // differences of L.
  struct Products {
    Vec<T> p_w, l_v, spread, p_similar;
  };

  // A term's parts of a row's
  //
  //   F = sum of factors and differences to partners of L, and
  //   G = the same of P,
  //
  // which are added to those of the terms after it.
  template <bool kWeighted>
  PAIRLOSS_INLINE static Products add_term(const Common& common, int64_t i, T u,
                                           const SimilarPart& similar, T* f_of, T* g_of) {
    const auto of_w = common.term.w.template row<kWeighted>(i, u, common.sums_w);
    const auto of_v = common.term.v.template row<kWeighted>(i, u, common.sums_v);
    const ClassMeans<T>& means = common.means;
    const bool has_similar = similar.c >= 0;
    Products sums{};
    for_each_vector(common.panels, i, means.panels, has_similar ? similar.c : 0,
                    [&](int64_t at, int64_t at_class) {
                      const Vec<T> p = load(common.p + at), l = load(common.l + at);
                      Vec<T> f = of_w.difference(l, at), g = of_v.difference(p, at);
                      sums.p_w += p * f;
                      sums.l_v += l * g;
                      f *= common.term.factor;
                      g *= common.term.factor;
                      if (has_similar) {
                        Vec<T> of_l = l - load(means.l + at_class),
                               of_p = p - load(means.p + at_class);
                        sums.spread += of_p * of_l;
                        of_l *= similar.weight;
                        of_p *= similar.weight;
                        if constexpr (kWeighted) {
                          of_l -= load(means.weighted_l + at_class);
                          of_p -= load(means.weighted_p + at_class);
                        }
                        sums.p_similar += p * of_l;
                        f += of_l * common.factor;
                        g += of_p * common.factor;
                      }
                      if (!common.is_last) {
                        f += load(f_of);
                        g += load(g_of);
                      }
                      store(f_of, f);
                      store(g_of, g);
                      f_of += kLanes<T>, g_of += kLanes<T>;
                    });
    return sums;
  }

  // Each step of a row waits for a sum over its columns: so several rows take it one after the
  // other, as many as have their F and G in the cache; and lanes of several rows are added at once.
  static constexpr int64_t kMostAbreast = 16, kAbreastElements = 2048;

  static int64_t rows_abreast(int64_t columns) {
    int64_t rows = kMostAbreast;
    while (rows > 1 && rows * columns > kAbreastElements) rows /= 2;
    return rows;
  }

  // One number, and its sum over the lanes, of every row abreast.
  struct RowSums {
    const int64_t rows;
    Vec<T> by_lanes[kMostAbreast];
    double of_row[kMostAbreast];

    explicit RowSums(int64_t rows) : rows(rows) {
      for (int64_t r = rows; r < kLanes<double>; ++r) by_lanes[r] = Vec<T>{};
    }
    void add_lanes() {
      for (int64_t r = 0; r < rows; r += kLanes<double>) {
        store(of_row + r, horizontal_sums<T>(by_lanes + r));
      }
    }
  };

  // f and g: F and G of the rows, one after the other.
  template <bool kWeighted, bool kSecondOnly>
  void finish_rows(int64_t first, T* f, T* g) const {
    const int64_t end = first + abreast_;
    double p_f[kMostAbreast] = {};  // P . F
    for (int64_t t = term_count_; t-- > 0;) finish_term<kWeighted>(t, first, f, g, p_f);
    const Panels<T> panels = panels_;
    const T* const p_of = batch_.p;
    RowSums rest(abreast_);
    for (int64_t i = first; i < end; ++i) {
      rest.by_lanes[i - first] = Vec<T>{};
      if (!has_gradient(i)) continue;
      // The rows of the gradient stand in the batch's order, and share cache lines with other
      // threads'.
      if (batch_.workers.count > 1) prefetch_to_write(grad_row(i), problem_.k);
      const bool is_infinite = batch_.infinite != nullptr && batch_.infinite[i] != 0;
      const T d = static_cast<T>(is_infinite ? NAN : p_f[i - first]);
      const T* const f_of = f + (i - first) * panels.columns;
      T* const z_of = g + (i - first) * panels.columns;  // the gradient, in the place of G
      Vec<T> sum{};
      for_each_vector(panels, i, [&](int64_t at, int64_t column) {
        Vec<T> z = load(z_of + column);
        if constexpr (!kSecondOnly) z += load(p_of + at) * (load(f_of + column) - d);
        sum += z;
        store(z_of + column, z);
      });
      rest.by_lanes[i - first] = sum;
    }
    rest.add_lanes();
    // Over the classes a gradient adds up to 0, and what rounding leaves of that sum is taken away
    // by P: where P is nearly one-hot, the largest element is a difference of large numbers.
    const int64_t k = problem_.k;
    for (int64_t i = first; i < end; ++i) {
      if (!has_gradient(i)) continue;
      const T w = batch_.sample_weight(i), of_rest = static_cast<T>(rest.of_row[i - first]);
      const T* const z_of = g + (i - first) * panels.columns;
      T* const to = grad_row(i);
      for_each_vector(panels, i, [&](int64_t at, int64_t column) {
        const Vec<T> z = load(z_of + column) - load(p_of + at) * of_rest;
        store_first(to + column, k - column, z * w);
      });
    }
  }

  bool has_gradient(int64_t i) const {
    return batch_.is_row(i) && problem_.sides[batch_.side_of(i)].grad != nullptr;
  }

  // Term t, and level t if there is one, of some rows: their losses, and what they add to F, G and
  // P . F.
  template <bool kWeighted>
  void finish_term(int64_t t, int64_t first, T* f, T* g, double* p_f) const {
    const Common common = common_of(t, batch_.side_of(first));
    RowSums p_w(abreast_), l_v(abreast_), spread(abreast_), p_similar(abreast_);
    SimilarPart similar[kMostAbreast];
    for (int64_t r = 0; r < abreast_; ++r) {
      const int64_t i = first + r, at = r * common.panels.columns;
      Products sums{};
      similar[r] = {-1, 0};
      if (batch_.is_row(i)) {
        const T u = kWeighted ? u_[i] : T(1);
        similar[r] = similar_part<kWeighted>(common, i, u);
        sums = add_term<kWeighted>(common, i, u, similar[r], f + at, g + at);
      }
      p_w.by_lanes[r] = sums.p_w, l_v.by_lanes[r] = sums.l_v;
      spread.by_lanes[r] = sums.spread, p_similar.by_lanes[r] = sums.p_similar;
    }
    for (RowSums* sums : {&p_w, &spread, &p_similar}) sums->add_lanes();
    if (common.by_partners) l_v.add_lanes();
    double loss = 0.0, similar_loss = 0.0;
    int64_t active = 0;
    for (int64_t r = 0; r < abreast_; ++r) {
      const int64_t i = first + r;
      const T w = batch_.sample_weight(i);
      loss += w * loss_of(common, i, p_w.of_row[r], l_v.of_row[r]);
      active += common.term.w.count[i];
      similar_loss += similar_loss_of(common, i, w, similar[r], spread.of_row[r]);
      p_f[r] += common.term.factor * p_w.of_row[r] + common.factor * p_similar.of_row[r];
    }
    const int64_t at = first / abreast_;
    common.term.loss[at] = loss;
    common.term.active[at] = active;
    if (t < problem_.level_count) similar_[t * (batch_.padded_rows / abreast_) + at] = similar_loss;
  }

  // What a row's pairs of one term lose, from P . W and L . V.
  PAIRLOSS_INLINE static double loss_of(const Common& common, int64_t i, double p_w, double l_v) {
    const double h = common.h[i], weight = common.term.w.total_weight(i);
    const double loss = common.by_w ? common.margin * weight - p_w : weight * (common.margin - h);
    // With neither W nor V of this row, its loss is that of the pairs' other rows.
    return common.by_partners ? loss - (l_v - common.term.v.total_weight(i) * h) : loss;
  }

  // What its similar pairs of one level lose. spread: s_i of similar.h.
  PAIRLOSS_INLINE double similar_loss_of(const Common& common, int64_t i, T w,
                                         const SimilarPart& similar, double spread) const {
    const bool first_side = batch_.side_of(i) == 0;
    if (first_side && batch_.infinite != nullptr && batch_.infinite[i] != 0) return INFINITY;
    if (similar.c < 0) return 0.0;
    const double loss = w * common.means.weight[similar.c] * spread;
    // With a reference set, both directions of every pair, once.
    if (!problem_.cross) return loss;
    return first_side ? loss + w * common.means.rest[similar.c] : 0.0;
  }

  void add_up() const {
    if (weighted_) return;
    const int64_t parts = batch_.padded_rows / abreast_;
    const auto add = [&](int64_t t, int64_t sign, PairSums& sums) {
      sums.dissimilar += static_cast<double>(sign) * sum_in_order(terms_[t].loss, parts);
      for (int64_t i = 0; i < parts; ++i) sums.active += sign * terms_[t].active[i];
    };
    for (int64_t g = 0; g < problem_.level_count; ++g) {
      sums_[g].similar = sum_in_order(similar_ + g * parts, parts);
      add(0, 1, sums_[g]);
      if (g == 0) continue;
      add(2 * g - 1, 1, sums_[g]);
      add(2 * g, -1, sums_[g]);
    }
    if (problem_.similarity != nullptr) sums_[0].similar -= sum_in_order(terms_[1].loss, parts);
  }

  const Problem& problem_;
  Batch<T> batch_;
  const Panels<T>& panels_;
  const int64_t abreast_;
  const T* row_weights_;
  const bool weighted_;
  const bool adds_whole_tiles_;  // where all pairs are certain
  Tiles<T> tiles_;
  TileStates states_;
  const int64_t term_count_;
  PairSums* sums_;

  bool sums_w_[2], sums_v_[2];  // whether rows of a side get W, and V
  bool by_w_[2];                // whether the loss of a side's rows, as first ones, is known by W
  Term<T>* terms_;
  Sources<T> l_sources_, p_sources_;
  T *l_w_, *p_w_, *l_wu_, *p_wu_;  // L and P times sample weights, and times row weights too
  T *wu_, *u_;                     // row weights (wu_: one vector per row)
  T *f_, *g_;                      // of abreast_ rows, for each worker
  double* similar_;                // per level and rows finished at a time: their part of the loss
  Infinities<T>* infinities_ = nullptr;
};

template <class T>
void differentiate(const Problem& problem, const Workers& workers, const void* row_weights,
                   PairSums* sums) {
  Differentiation<T>(problem, workers, row_weights, sums).run();
}

}  // namespace
}  // namespace pairloss::cpu::PAIRLOSS_ISA
