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
  double* loss;      // per row: sum_j w_i w_j (m - D_ij) over the term's pairs
};

template <class T>
class Differentiation {
 public:
  Differentiation(const Problem& problem, const Workers& workers, const void* row_weights,
                  PairSums* sums)
      : problem_(problem),
        batch_(problem, workers, true),
        panels_(batch_.panels),
        row_weights_(static_cast<const T*>(row_weights)),
        weighted_(row_weights != nullptr),
        tiles_(panels_, problem.margin, uses<Idea::certificates> && batch_.certifies),
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
    if (make_rows(batch_, tiles_, flags) == Health::nan) return fill(static_cast<T>(NAN));
    find_id_ranges(batch_);
    make_sources();
    make_means<T>(batch_, weighted_ ? l_sources_.wu : nullptr, problem_.cross);
    std::optional<Infinities<T>> infinities;
    if (flags.masked) infinities.emplace(batch_);
    infinities_ = infinities ? &*infinities : nullptr;

    if (batch_.has_scores()) {
      Schedule schedule(batch_.first_block[1], batch_.blocks() - batch_.first_block[1],
                        batch_.workers.count);
      for_each_tile(batch_.workers, schedule, [&](int64_t worker, const Tile& tile) {
        add_tile(batch_.scratch[worker], tile, schedule.row_turn(tile), schedule.column_turn(tile));
      });
    }
    for_each_task(batch_.workers, batch_.padded_rows / 32, [&](int64_t, int64_t task) {
      for (int64_t i = task * 32; i < (task + 1) * 32; ++i) finish_row(i);
    });
    add_up();
  }

 private:
  void lay_out(Arena& arena) {
    const int64_t rows = batch_.padded_rows;
    batch_.lay_out(arena, tiles_.scores_size(batch_.tile), true, weighted_);
    tiles_.lay_out(arena);
    const bool has_w = batch_.has_sample_weights();
    terms_ = arena.take<Term<T>>(term_count_);
    for (int64_t t = 0; t < term_count_; ++t) {
      Term<T> term{};
      term.w.lay_out(arena, panels_, has_w, weighted_);
      term.v.lay_out(arena, panels_, has_w, weighted_);
      term.factor = factor_of(t);
      term.loss = arena.take<double>(rows);
      if (terms_ != nullptr) terms_[t] = term;
    }
    similar_ = arena.take<double>(rows * problem_.level_count);
    const auto take = [&](bool wanted, int64_t count) {
      T* const array = arena.take<T>(wanted ? count : 0);
      return wanted ? array : nullptr;
    };
    l_w_ = take(has_w, panels_.size()), p_w_ = take(has_w, panels_.size());
    l_wu_ = take(weighted_, panels_.size()), p_wu_ = take(weighted_, panels_.size());
    wu_ = take(weighted_, rows * kLanes<T>), u_ = take(weighted_, rows);
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
    l_sources_ = {l_w_ != nullptr ? l_w_ : batch_.l, batch_.weight, l_wu_, wu_};
    p_sources_ = {p_w_ != nullptr ? p_w_ : batch_.p, batch_.weight, p_wu_, wu_};
    for (int64_t t = 0; t < term_count_; ++t) {
      __builtin_memset(terms_[t].w.count, 0, panels_.rows * sizeof(int32_t));
      __builtin_memset(terms_[t].v.count, 0, panels_.rows * sizeof(int32_t));
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
    });
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
    if (batch_.has_no_dissimilar(tile)) {
      row_turn.wait(tile.row_turn);
      row_turn.pass(tile.row_turn);
      column_turn.wait(tile.column_turn);
      column_turn.pass(tile.column_turn);
      return;
    }
    find_active(place);
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

  // Pairs with KL < margin, to scratch.active; of a similarity matrix, only the dissimilar ones,
  // and the similar ones to scratch.bits.
  void find_active(const Place& place) const {
    const Scratch<T>& scratch = place.scratch;
    const int32_t* const id = batch_.levels[0].id;
    const bool one_level = problem_.level_count == 1 && problem_.similarity == nullptr;
    tiles_.find_active(place.rows, place.columns, scratch.scores, scratch.active,
                       [&](int64_t i, int64_t j) { return one_level && id[i] == id[j]; });
    if (problem_.similarity == nullptr) return;
    SimilarityMatrix{problem_.similarity, problem_.sides[0].n, batch_.row}.split(
        place.rows, place.columns, scratch.active, scratch.bits);
    if (infinities_ == nullptr) return;
    infinities_->mark_infinite(batch_, place.rows, place.columns, scratch.bits);
    infinities_->supports.clear_infinite(place.rows, place.columns, scratch.active);
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

  bool is_similar_term(int64_t t) const { return problem_.similarity != nullptr && t == 1; }

  void finish_row(int64_t i) const {
    if (!batch_.is_row(i)) {
      for (int64_t t = 0; t < term_count_; ++t) terms_[t].loss[i] = 0.0;
      for (int64_t g = 0; g < problem_.level_count; ++g) {
        similar_[g * batch_.padded_rows + i] = 0.0;
      }
      return;
    }
    if (weighted_) {
      problem_.second_only ? finish_row<true, true>(i) : finish_row<true, false>(i);
    } else {
      problem_.second_only ? finish_row<false, true>(i) : finish_row<false, false>(i);
    }
  }

  // The similar pairs of a row in one level: their means, and what their differences weigh. A
  // copy: the loops over a row's vectors store to memory that the compiler cannot tell from what
  // lies elsewhere.
  struct SimilarPart {
    bool exists = false;
    ClassMeans<T> means{Panels<T>(0, 0), 0, nullptr, nullptr};
    int64_t c = 0;
    T factor = 0, weight = 0;

    // sum_j w_j (u + u_j) (x - x_j) over the similar j; x is L (kFirst) or P.
    template <bool kWeighted, bool kFirst>
    PAIRLOSS_INLINE Vec<T> difference(Vec<T> x, int64_t column) const {
      const int64_t at = means.at(column, c);
      Vec<T> difference = (x - load((kFirst ? means.l : means.p) + at)) * weight;
      if constexpr (kWeighted) {
        difference -= load((kFirst ? means.weighted_l : means.weighted_p) + at);
      }
      return difference;
    }
  };

  template <bool kWeighted>
  SimilarPart similar_part(int64_t g, int64_t i, T u) const {
    const int64_t c = batch_.levels[g].id[i];
    if (!batch_.has_means() || c < 0) return {};
    const ClassMeans<T>& means = batch_.means_of(g, batch_.partner(batch_.side_of(i)));
    if (means.size(c) < (problem_.cross ? 1 : 2)) return {};
    T weight = means.weight[c];
    if constexpr (kWeighted) weight = weight * u + means.weighted_weight[c];
    return {true, means, c, static_cast<T>(problem_.levels[g].similar_scale), weight};
  }

  // A row's part of the first term and of the first level, which are all of most batches.
  template <bool kWeighted>
  struct FirstParts {
    typename Selected<T>::template Row<kWeighted> w, v;
    T factor;
    SimilarPart similar;
  };

  template <bool kWeighted, bool kSecondOnly>
  void finish_row(int64_t i) const {
    const int64_t side = batch_.side_of(i), other = batch_.partner(side);
    const T u = kWeighted ? u_[i] : T(1);
    const T w = batch_.sample_weight(i);
    double along_p = 0.0;  // P . F, where F is the first argument's part of the gradient

    // With neither W nor V of this row, its loss is that of the pairs' other rows.
    const bool by_w = by_w_[side], by_v = !by_w_[other];
    for (int64_t t = 0; t < term_count_; ++t) {
      const Term<T>& term = terms_[t];
      Vec<T> p_w{}, l_v{};
      const auto w_of_row = term.w.template row<kWeighted>(i, u);
      if (sums_w_[side]) {
        for_each_vector(panels_, i, [&](int64_t at, int64_t) {
          p_w += load(batch_.p + at) * w_of_row.difference(load(batch_.l + at), at);
        });
      }
      if (by_v) {
        const auto v_of_row = term.v.template row<kWeighted>(i, u);
        for_each_vector(panels_, i, [&](int64_t at, int64_t) {
          l_v += load(batch_.l + at) * v_of_row.difference(load(batch_.p + at), at);
        });
      }
      const double divergence = horizontal_sum<T>(p_w);
      along_p += term.factor * divergence;
      const double margin = is_similar_term(t) ? 0.0 : problem_.margin;
      const double h = batch_.h[i], weight = term.w.total_weight(i);
      double loss = by_w ? margin * weight - divergence : weight * (margin - h);
      if (by_v) loss -= horizontal_sum<T>(l_v) - term.v.total_weight(i) * h;
      term.loss[i] = w * loss;
    }
    const FirstParts<kWeighted> parts{terms_[0].w.template row<kWeighted>(i, u),
                                      terms_[0].v.template row<kWeighted>(i, u), terms_[0].factor,
                                      similar_part<kWeighted>(0, i, u)};
    along_p += finish_similar<kWeighted, kSecondOnly>(0, i, w, parts.similar);
    for (int64_t g = 1; g < problem_.level_count; ++g) {
      along_p += finish_similar<kWeighted, kSecondOnly>(g, i, w, similar_part<kWeighted>(g, i, u));
    }
    if (problem_.sides[side].grad == nullptr) return;

    // The gradient, in the place of L, which is not needed any more.
    const bool infinite = batch_.infinite != nullptr && batch_.infinite[i] != 0;
    const T d = infinite ? static_cast<T>(NAN) : static_cast<T>(along_p);
    Vec<T> sum{};
    const Panels<T> panels = panels_;  // these are copies for the same reason as SimilarPart
    const int64_t k = problem_.k;
    const T* const p_of = batch_.p;
    T* const l_of = batch_.l;
    for_each_vector(panels, i, [&](int64_t at, int64_t column) {
      const Vec<T> p = load(p_of + at);
      Vec<T> z = differences<kWeighted, false>(i, p, at, column, u, parts);
      if constexpr (!kSecondOnly) {
        z += p * (differences<kWeighted, true>(i, load(l_of + at), at, column, u, parts) - d);
      }
      sum += z;
      store(l_of + at, z);
    });
    // Over the classes a gradient adds up to 0, and what rounding leaves of that sum is taken away
    // by P: where P is nearly one-hot, the largest element is a difference of large numbers.
    const T rest = static_cast<T>(horizontal_sum<T>(sum));
    T* const to = grad_row(i);
    for_each_vector(panels, i, [&](int64_t at, int64_t column) {
      store_first(to + column, k - column, (load(l_of + at) - load(p_of + at) * rest) * w);
    });
  }

  // One vector of a row's differences to its partners, times their weights in the gradient: x is L,
  // and the result F, or P.
  template <bool kWeighted, bool kFirst>
  PAIRLOSS_INLINE Vec<T> differences(int64_t i, Vec<T> x, int64_t at, int64_t column, T u,
                                     const FirstParts<kWeighted>& parts) const {
    Vec<T> sum = (kFirst ? parts.w : parts.v).difference(x, at) * parts.factor;
    for (int64_t t = 1; t < term_count_; ++t) {
      const Selected<T>& selected = kFirst ? terms_[t].w : terms_[t].v;
      sum += selected.template row<kWeighted>(i, u).difference(x, at) * terms_[t].factor;
    }
    const auto add_similar = [&](const SimilarPart& part) {
      if (!part.exists) return;
      sum += part.template difference<kWeighted, kFirst>(x, column) * part.factor;
    };
    add_similar(parts.similar);
    for (int64_t g = 1; g < problem_.level_count; ++g) {
      add_similar(similar_part<kWeighted>(g, i, u));
    }
    return sum;
  }

  // The similar pairs' loss of one level and row; returns their part of P . F.
  template <bool kWeighted, bool kSecondOnly>
  double finish_similar(int64_t g, int64_t i, T w, const SimilarPart& part) const {
    double& loss = similar_[g * batch_.padded_rows + i];
    loss = 0.0;
    double along_p = 0.0;
    if (part.exists) {
      const ClassMeans<T>& means = part.means;
      Vec<T> spread{}, p_first{};
      for_each_vector(panels_, i, [&](int64_t at, int64_t column) {
        const Vec<T> p = load(batch_.p + at), l = load(batch_.l + at);
        spread += means.spread(p, l, column, part.c);
        if constexpr (!kSecondOnly) {
          p_first += p * part.template difference<kWeighted, true>(l, column);
        }
      });
      along_p = part.factor * horizontal_sum<T>(p_first);
      loss = w * means.weight[part.c] * horizontal_sum<T>(spread);
      // With a reference set, both directions of every pair, once.
      if (problem_.cross) {
        loss = batch_.side_of(i) == 0 ? loss + w * means.rest[part.c] : 0.0;
      }
    }
    if (batch_.infinite != nullptr && batch_.infinite[i] != 0 && batch_.side_of(i) == 0) {
      loss = INFINITY;
    }
    return along_p;
  }

  void add_up() const {
    if (weighted_) return;
    const int64_t rows = batch_.padded_rows;
    const auto add = [&](int64_t t, int64_t sign, PairSums& sums) {
      sums.dissimilar += static_cast<double>(sign) * sum_in_order(terms_[t].loss, rows);
      for (int64_t i = 0; i < rows; ++i) sums.active += sign * terms_[t].w.count[i];
    };
    for (int64_t g = 0; g < problem_.level_count; ++g) {
      sums_[g].similar = sum_in_order(similar_ + g * rows, rows);
      add(0, 1, sums_[g]);
      if (g == 0) continue;
      add(2 * g - 1, 1, sums_[g]);
      add(2 * g, -1, sums_[g]);
    }
    if (problem_.similarity != nullptr) sums_[0].similar -= sum_in_order(terms_[1].loss, rows);
  }

  const Problem& problem_;
  Batch<T> batch_;
  const Panels<T>& panels_;
  const T* row_weights_;
  const bool weighted_;
  Tiles<T> tiles_;
  const int64_t term_count_;
  PairSums* sums_;

  bool sums_w_[2], sums_v_[2];  // whether rows of a side get W, and V
  bool by_w_[2];                // whether the loss of a side's rows, as first ones, is known by W
  Term<T>* terms_;
  Sources<T> l_sources_, p_sources_;
  T *l_w_, *p_w_, *l_wu_, *p_wu_;  // L and P times sample weights, and times row weights too
  T *wu_, *u_;                     // row weights (wu_: one vector per row)
  double* similar_;                // per level and row: its part of the loss
  Infinities<T>* infinities_ = nullptr;
};

template <class T>
void differentiate(const Problem& problem, const Workers& workers, const void* row_weights,
                   PairSums* sums) {
  Differentiation<T>(problem, workers, row_weights, sums).run();
}

}  // namespace
}  // namespace pairloss::cpu::PAIRLOSS_ISA
