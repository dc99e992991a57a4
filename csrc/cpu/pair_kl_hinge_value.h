// The loss alone: the sums of all hinges, from divergences that are not kept.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {
namespace {

// Adds w_j l_ij over the set bits of one row: the hinge `constant + score`, where that is positive,
// or with kSimilar the divergence `constant - score`. Returns the sum.
template <class T, bool kSimilar>
PAIRLOSS_INLINE double add_row(const T* scores, T constant, int64_t words, const uint32_t* bits,
                               const T* weights, T* columns, T column_factor, int64_t& active) {
  typedef typename Simd<T>::I I;
  using Lane = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  I bit{};
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) bit[lane] = Lane{1} << lane;
  Vec<T> sum{};
  I count{};
  for (int64_t w = 0; w < words; ++w) {
    if (bits[w] == 0) continue;
    for (int64_t c = 0; c < 32; c += kLanes<T>) {
      const Lane word = static_cast<Lane>(bits[w] >> c & ((uint64_t{1} << kLanes<T>)-1));
      const Vec<T> score = load(scores + w * 32 + c);
      const Vec<T> term = kSimilar ? constant - score : score + constant;
      I counts = (word & bit) != 0;
      if constexpr (!kSimilar) counts &= term > 0;
      Vec<T> counted = counts ? term : Vec<T>{};
      count -= counts;
      if (weights != nullptr) {
        for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
          counted[lane] *= weights[(w * 32 + c + lane) * kLanes<T>];
        }
      }
      sum += counted;
      if (columns != nullptr) {
        store(columns + w * 32 + c, load(columns + w * 32 + c) + counted * column_factor);
      }
    }
  }
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) active += count[lane];
  return horizontal_sum<T>(sum);
}

template <class T>
class Evaluation {
 public:
  Evaluation(const Problem& problem, const Workers& workers, PairSums* sums, double* row_losses)
      : problem_(problem),
        batch_(problem, workers, false),
        tiles_(batch_.panels, problem.margin, {false, false, batch_.tile}),
        sums_(sums),
        row_losses_(row_losses) {}

  void run() {
    const int64_t n = problem_.sides[0].n;
    for (int64_t g = 0; g < problem_.level_count; ++g) sums_[g] = {};
    for (int64_t i = 0; i < n && row_losses_ != nullptr; ++i) row_losses_[i] = 0.0;
    if (batch_.is_empty()) return;

    Arena size;
    lay_out(size);
    const Buffer buffer(size.used());
    Arena arena(buffer.data());
    lay_out(arena);
    RowFlags flags;
    if (make_rows(batch_, tiles_, flags, [](int64_t) {}) == Health::nan) return fill(NAN);
    find_id_ranges(batch_);
    std::optional<Infinities<T>> infinities;
    if (flags.masked) infinities.emplace(batch_);
    infinities_ = infinities ? &*infinities : nullptr;

    const int64_t entries = batch_.padded_rows * problem_.level_count;
    for (int64_t i = 0; i < entries; ++i) dissimilar_[i] = 0.0, active_[i] = 0;
    for (int64_t i = 0; i < batch_.padded_rows; ++i) similar_[i] = by_row_[i] = by_column_[i] = 0.0;
    MeansStages<T> means(batch_, nullptr, row_losses_ != nullptr || problem_.cross);
    Schedule tiles = batch_.schedule();
    on_every_worker(batch_.workers, [&](int64_t worker) {
      means.work(worker);
      tiles.work(worker, [&](int64_t, const Tile& tile) {
        add_tile(worker, tile, tiles.row_turn(tile), tiles.column_turn(tile));
      });
      means.finish(worker);
    });
    finish();
  }

 private:
  void lay_out(Arena& arena) {
    const int64_t rows = batch_.padded_rows, levels = problem_.level_count;
    batch_.lay_out(arena, batch_.tile * batch_.tile, false, false);
    tiles_.lay_out(arena);
    similar_ = arena.take<double>(rows);
    dissimilar_ = arena.take<double>(rows * levels);
    active_ = arena.take<int64_t>(rows * levels);
    by_row_ = arena.take<double>(rows);
    by_column_ = arena.take<double>(rows);
    column_sums_ = arena.take<T>(batch_.workers.count * batch_.tile);
  }

  void fill(double value) {
    for (int64_t g = 0; g < problem_.level_count; ++g) sums_[g] = {value, value, 0};
    for (int64_t i = batch_.begin[0]; i < batch_.end[0] && row_losses_ != nullptr; ++i) {
      row_losses_[batch_.row[i]] = value;
    }
  }

  void add_tile(int64_t worker, const Tile& tile, Turn& row_turn, Turn& column_turn) {
    const Span rows = batch_.block(tile.row_block), columns = batch_.block(tile.column_block);
    const Scratch<T>& scratch = batch_.scratch[worker];
    T* const column_sums = column_sums_ + worker * batch_.tile;
    const bool empty = batch_.has_no_dissimilar(tile);
    const int64_t stride = round_up(columns.size(), 32);
    if (!empty) {
      for_each_block(
          tiles_, rows, columns, scratch.scores, [](int64_t, int64_t) { return true; },
          [&](int64_t row, int64_t column,
              const RegisterBlock<T>& block) __attribute__((always_inline)) {
            block.store_to(scratch.scores + (row - rows.begin) * stride + (column - columns.begin),
                           stride);
          });
    }
    row_turn.wait(tile.row_turn);
    for (int64_t c = 0; c < batch_.tile; ++c) column_sums[c] = 0;
    for (int64_t g = 0; g < (empty ? 0 : problem_.level_count); ++g) {
      add_level(g, tile, rows, columns, stride, scratch, column_sums);
    }
    row_turn.pass(tile.row_turn);
    column_turn.wait(tile.column_turn);
    if (row_losses_ != nullptr) {
      for (int64_t c = columns.begin; c < columns.end; ++c)
        by_column_[c] += column_sums[c - columns.begin];
    }
    column_turn.pass(tile.column_turn);
  }

  void add_level(int64_t g, const Tile& tile, Span rows, Span columns, int64_t stride,
                 const Scratch<T>& scratch, T* column_sums) {
    const int64_t words = round_up(columns.size(), 32) / 32;
    const int64_t bits = round_up(rows.size(), 32) * words;
    for (int64_t i = 0; i < bits; ++i) scratch.active[i] = ~uint32_t{0};
    if (problem_.similarity != nullptr) {
      SimilarityMatrix{problem_.similarity, problem_.sides[0].n, batch_.row}.split(
          rows, columns, scratch.active, scratch.bits);
      if (infinities_ != nullptr) {
        infinities_->mark_infinite(batch_, rows, columns, scratch.bits);
        infinities_->supports.clear_infinite(rows, columns, scratch.bits);
      }
    } else {
      batch_.levels[g].keep_dissimilar(rows, columns, batch_.levels[g].blocks[tile.column_block],
                                       scratch.active, scratch.active);
    }
    if (infinities_ != nullptr) infinities_->supports.clear_infinite(rows, columns, scratch.active);

    const T m = static_cast<T>(problem_.margin);
    const Level& level = problem_.levels[g];
    const T* weights =
        batch_.weight != nullptr ? batch_.weight + columns.begin * kLanes<T> : nullptr;
    T* const to_columns = row_losses_ != nullptr ? column_sums : nullptr;
    int64_t ignored = 0;
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const T* scores = scratch.scores + (r - rows.begin) * stride;
      const uint32_t *active = scratch.active + (r - rows.begin) * words,
                     *similar = scratch.bits + (r - rows.begin) * words;
      const double w = batch_.sample_weight(r);
      const int64_t at = g * batch_.padded_rows + r;
      const double hinges =
          w * add_row<T, false>(scores, m - batch_.h[r], words, active, weights, to_columns,
                                static_cast<T>(w * level.dissimilar_scale), active_[at]);
      dissimilar_[at] += hinges;
      by_row_[r] += level.dissimilar_scale * hinges;
      if (problem_.similarity == nullptr) continue;
      const double divergences =
          w * add_row<T, true>(scores, batch_.h[r], words, similar, weights, to_columns,
                               static_cast<T>(w * level.similar_scale), ignored);
      similar_[r] += divergences;
      by_row_[r] += level.similar_scale * divergences;
    }
  }

  // Similar pairs in closed form, and the sums.
  void finish() {
    for (int64_t g = 0; g < problem_.level_count; ++g) {
      if (batch_.has_means()) {
        for_each_task(batch_.workers, batch_.padded_rows / 32, [&](int64_t, int64_t task) {
          for (int64_t i = task * 32; i < (task + 1) * 32; ++i) {
            similar_[i] = batch_.is_row(i) ? similar_of_row(g, i) : 0.0;
          }
        });
      }
      for (int64_t i = 0; i < batch_.padded_rows; ++i) {
        if (batch_.infinite != nullptr && batch_.infinite[i] != 0) similar_[i] = INFINITY;
        sums_[g].active += active_[g * batch_.padded_rows + i];
      }
      sums_[g].similar = sum_in_order(similar_, batch_.end[0]);
      sums_[g].dissimilar = sum_in_order(dissimilar_ + g * batch_.padded_rows, batch_.padded_rows);
    }
    for (int64_t i = batch_.begin[0]; i < batch_.end[0] && row_losses_ != nullptr; ++i) {
      const bool infinite = batch_.infinite != nullptr && batch_.infinite[i] != 0;
      row_losses_[batch_.row[i]] = infinite ? INFINITY : by_row_[i] + by_column_[i];
    }
  }

  // sum_j w_i w_j D_ij, over ordered pairs of the batch; with a reference set, both directions.
  // Adds the row's own loss to by_row_.
  double similar_of_row(int64_t g, int64_t i) {
    const int64_t side = batch_.side_of(i), c = batch_.levels[g].id[i];
    if (c < 0) return 0.0;
    const ClassMeans<T>& means = batch_.means_of(g, batch_.partner(side));
    if (means.size(c) == 0) return 0.0;
    Vec<T> s{};
    for_each_vector(batch_.panels, i, [&](int64_t at, int64_t column) {
      s += means.spread(load(batch_.p + at), load(batch_.l + at), column, c);
    });
    const double w = batch_.sample_weight(i);
    const double spread = means.weight[c] * horizontal_sum<T>(s);
    const bool rests = row_losses_ != nullptr || problem_.cross;
    const double both = rests ? w * (spread + means.rest[c]) : 0.0;
    by_row_[i] += problem_.levels[g].similar_scale * both;
    return problem_.cross ? both : w * spread;
  }

  const Problem& problem_;
  Batch<T> batch_;
  VectorTiles<T> tiles_;
  PairSums* sums_;
  double* row_losses_;
  Infinities<T>* infinities_ = nullptr;
  double *similar_, *dissimilar_;  // per row, and per level and row: its part of the sums
  int64_t* active_;                // per level and row
  double *by_row_,
      *by_column_;  // scaled, over all levels: what pairs add to their first and second row
  T* column_sums_;  // of one tile, per worker
};

template <class T>
void evaluate(const Problem& problem, const Workers& workers, PairSums* sums, double* row_losses) {
  Evaluation<T>(problem, workers, sums, row_losses).run();
}

}  // namespace
}  // namespace pairloss::cpu::PAIRLOSS_ISA
