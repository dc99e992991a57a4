// The rows of one evaluation, and where everything about them lies.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

// Rows of a tile, whatever the number of threads. A tile adds to accumulators that do not stay in
// the cache where K is large: larger tiles, fewer visits. What one thread does alone need not be
// cut.
inline int64_t tile_size(int64_t rows, int64_t k) {
  if (rows <= 64) return 64;
  if (rows <= 128) return rows * rows * k < kSerialWork ? 128 : 64;
  if (rows <= 512) return 128;
  return k < 1024 ? 256 : kLargestTile;
}

// In smaller batches than this, blocks of like rows are too few to find any certain.
constexpr int64_t kLeastOrderedTile = 256;

// Scratch of one worker.
template <class T>
struct Scratch {
  T* z;       // one row
  T* scores;  // of one tile
  // tile x tile bits: active pairs; those of one term and of another; and their transpose.
  uint32_t *active, *bits, *other_bits, *flipped;
  SelectionScratch<T> selection;
};

// The likeness of all rows, where certificates want it: in large batches; and what else was found
// on the way. Null elsewhere.
template <class T>
class Order {
 public:
  Order(const Problem& problem, const Workers& workers, bool certifies)
      : rows_(problem.sides[0].n + problem.sides[1].n),
        columns_(problem.k),
        wanted_(uses<Idea::likeness_order> && certifies && problem.similarity == nullptr),
        memory_(wanted_ ? lay_out(Arena(), workers) : 0, false) {
    if (!wanted_) return;
    lay_out(Arena(memory_.data()), workers);
    for_each_task(workers, (rows_ + 31) / 32, [&](int64_t worker, int64_t task) {
      T* const scratch = scratch_ + worker * columns_;
      for (int64_t i = task * 32; i < rows_ && i < (task + 1) * 32; ++i) {
        const LogitsRow<T> z = read_logits(problem, i, scratch);
        normalizer_[i] = find_normalizer(z);
        likeness_[i] = find_likeness(z, normalizer_[i]);
      }
    });
  }

  const Likeness* likeness() const { return likeness_; }
  const Normalizer<T>* normalizers() const { return normalizer_; }

 private:
  size_t lay_out(Arena arena, const Workers& workers) {
    likeness_ = arena.take<Likeness>(rows_);
    normalizer_ = arena.take<Normalizer<T>>(rows_);
    scratch_ = arena.take<T>(workers.count * columns_);
    return arena.used();
  }

  int64_t rows_, columns_;
  bool wanted_;
  Likeness* likeness_ = nullptr;
  Normalizer<T>* normalizer_ = nullptr;
  T* scratch_ = nullptr;
  Buffer memory_;
};

template <class T>
struct Batch {
  const Problem& problem;
  const Workers& workers;
  int64_t tile;
  bool certifies;  // large enough to have blocks of like rows
  Order<T> order;
  Arrangement arrangement;
  int64_t begin[2], end[2], first_block[3];  // of each side, in positions and in blocks
  int64_t padded_rows;
  Panels<T> panels;
  bool has_similar, has_dissimilar;  // in any level

  const int64_t* row;  // position -> row
  T *p, *l, *h;
  T* reference;
  T* weight;  // sample weights, one vector per position; null for ones
  LevelIds* levels;
  ClassMeans<T>* means;  // [level][side]
  Scratch<T>* scratch;
  uint8_t* infinite;  // per row: a similar pair with infinite KL. Null if there is none.

  // uses_certificates: not where the divergences themselves are needed.
  Batch(const Problem& problem, const Workers& workers, bool uses_certificates)
      : problem(problem),
        workers(workers),
        tile(tile_size(problem.sides[0].n, problem.k)),
        certifies(uses_certificates && tile >= kLeastOrderedTile),
        order(problem, workers, certifies),
        arrangement(problem.levels, problem.level_count, problem.sides[0].n, problem.sides[1].n,
                    order.likeness(), problem.k, tile),
        begin{arrangement.begin(0), arrangement.begin(1)},
        end{arrangement.end(0), arrangement.end(1)},
        padded_rows(round_up(arrangement.positions(), 32)),
        panels(padded_rows, problem.k),
        has_similar(false),
        has_dissimilar(false),
        row(arrangement.row()),
        infinite(nullptr) {
    first_block[0] = 0;
    for (int64_t side = 0; side < 2; ++side) {
      first_block[side + 1] = first_block[side] + (end[side] - begin[side] + tile - 1) / tile;
    }
    for (int64_t g = 0; g < problem.level_count; ++g) {
      has_similar |= problem.levels[g].similar_pairs > 0.0;
      has_dissimilar |= problem.levels[g].dissimilar_pairs > 0.0;
    }
  }

  bool is_empty() const { return !has_similar && !has_dissimilar; }
  bool has_sample_weights() const {
    return problem.sides[0].sample_weights != nullptr || problem.sides[1].sample_weights != nullptr;
  }
  bool has_means() const { return has_similar && problem.similarity == nullptr; }
  bool has_scores() const { return has_dissimilar || problem.similarity != nullptr; }
  int64_t blocks() const { return first_block[2]; }
  int64_t side_of_block(int64_t b) const { return b < first_block[1] ? 0 : 1; }
  Span block(int64_t b) const {
    const int64_t side = side_of_block(b);
    const int64_t from = begin[side] + (b - first_block[side]) * tile;
    return {from, from + tile < end[side] ? from + tile : end[side]};
  }
  int64_t block_of(int64_t position) const {
    const int64_t side = side_of(position);
    return first_block[side] + (position - begin[side]) / tile;
  }
  int64_t side_of(int64_t position) const { return position < end[0] ? 0 : 1; }
  // Whether there is nothing to do in a tile, in any level.
  bool has_no_dissimilar(const Tile& t) const {
    if (problem.similarity != nullptr) return false;
    for (int64_t g = 0; g < problem.level_count; ++g) {
      const IdRange* const blocks = levels[g].blocks;
      if (!LevelIds::has_no_dissimilar(blocks[t.row_block], blocks[t.column_block])) return false;
    }
    return true;
  }
  // Whether all pairs of two blocks are dissimilar, in all levels.
  bool is_all_dissimilar(int64_t block, int64_t other) const {
    for (int64_t g = 0; g < problem.level_count; ++g) {
      const IdRange* const blocks = levels[g].blocks;
      if (!LevelIds::is_all_dissimilar(blocks[block], blocks[other])) return false;
    }
    return true;
  }
  // The tiles whose pairs are looked at one by one: all, or none.
  Schedule schedule() const {
    if (!has_scores()) return Schedule(0, 0, workers.count);
    return Schedule(first_block[1], blocks() - first_block[1], workers.count);
  }
  // Whose rows are the partners of a side's.
  int64_t partner(int64_t side) const { return problem.cross ? 1 - side : 0; }
  bool is_row(int64_t position) const {
    return position < arrangement.positions() && row[position] >= 0;
  }
  const ClassMeans<T>& means_of(int64_t level, int64_t side) const {
    return means[2 * level + side];
  }
  T sample_weight(int64_t position) const {
    return weight != nullptr ? weight[position * kLanes<T>] : T(1);
  }

  // scores_size: of every worker's scratch. selects: whether active pairs are summed, not only
  // counted. weighted: whether there are row weights.
  void lay_out(Arena& arena, int64_t scores_size, bool selects, bool weighted) {
    p = arena.take<T>(panels.size());
    l = arena.take<T>(panels.size());
    h = arena.take<T>(padded_rows);
    reference = arena.take<T>(panels.columns);
    weight = arena.take<T>(has_sample_weights() ? padded_rows * kLanes<T> : 0);
    if (!has_sample_weights()) weight = nullptr;
    const int64_t level_count = problem.level_count;
    levels = arena.take<LevelIds>(level_count);
    means = arena.take<ClassMeans<T>>(2 * level_count);
    for (int64_t g = 0; g < level_count; ++g) {
      const LevelIds ids{arena.take<int32_t>(padded_rows), arena.take<IdRange>(blocks())};
      if (levels != nullptr) levels[g] = ids;
      for (int64_t side = 0; side < 2 && has_means(); ++side) {
        const int64_t classes = problem.levels[g].classes;
        ClassMeans<T> of_side{Panels<T>(classes, problem.k), classes, arrangement.members(g, side),
                              arrangement.member_positions(g, side)};
        of_side.lay_out(arena, weighted);
        if (means != nullptr) means[2 * g + side] = of_side;
      }
    }
    scratch = arena.take<Scratch<T>>(workers.count);
    for (int64_t w = 0; w < workers.count; ++w) {
      Scratch<T> s{};
      s.z = arena.take<T>(panels.columns);
      s.scores = arena.take<T>(scores_size);
      s.active = arena.take<uint32_t>(tile * tile / 32);
      s.bits = arena.take<uint32_t>(tile * tile / 32);
      if (selects) {
        s.other_bits = arena.take<uint32_t>(problem.level_count > 1 ? tile * tile / 32 : 0);
        s.flipped = arena.take<uint32_t>(tile * tile / 32);
        s.selection.lay_out(arena, tile);
      }
      if (scratch != nullptr) scratch[w] = s;
    }
  }
};

enum class Health { fine, nan };

// P, L, h of all rows, and what `tiles` packs of them, in tasks of 32 rows; made(row) is called
// when those from `row` on are there.
template <class T, class Tiles, class Made>
Health make_rows(Batch<T>& batch, Tiles& tiles, RowFlags& flags, Made&& made) {
  const Problem& problem = batch.problem;
  Reference<T> reference{batch.reference, 0.0};
  reference.set(problem, batch.panels.columns, batch.row[batch.begin[batch.end[0] > 0 ? 0 : 1]],
                batch.scratch[0].z);
  tiles.set_rows(batch.p, batch.l, batch.h, reference);
  std::atomic<bool> nan{false}, masked{false};
  // Longer rows would have left the cache by their next step.
  const int64_t rows_at_once = batch.panels.columns < 1024 ? kRowsAtOnce : 4;
  for_each_task(batch.workers, batch.padded_rows / kRowsAtOnce, [&](int64_t worker, int64_t task) {
    const Span positions{task * kRowsAtOnce, (task + 1) * kRowsAtOnce};
    for (int64_t i = positions.begin; i < positions.end; i += rows_at_once) {
      const RowFlags of_rows = make_rows(
          problem, batch.panels, reference, batch.order.normalizers(), {i, i + rows_at_once},
          [&](int64_t at) { return batch.is_row(at) ? batch.row[at] : -1; },
          batch.scratch[worker].z, batch.p, batch.l, batch.h);
      if (of_rows.nan) nan.store(true, std::memory_order_relaxed);
      if (of_rows.masked) masked.store(true, std::memory_order_relaxed);
    }
    set_labels(batch, positions);
    if (batch.has_scores()) tiles.pack(positions.begin);
    made(positions.begin);
  });
  flags = {nan.load(), masked.load()};
  return flags.nan ? Health::nan : Health::fine;
}

// The classes and the sample weights of some positions.
template <class T>
void set_labels(const Batch<T>& batch, Span positions) {
  const Problem& problem = batch.problem;
  for (int64_t g = 0; g < problem.level_count; ++g) {
    const int32_t* const of_rows = problem.levels[g].id.data();
    int32_t* const id = batch.levels[g].id;
    for (int64_t i = positions.begin; i < positions.end; ++i) {
      id[i] = batch.is_row(i) ? of_rows[batch.row[i]] : -1;
    }
  }
  if (batch.weight == nullptr) return;
  const int64_t n = problem.sides[0].n;
  for (int64_t i = positions.begin; i < positions.end; ++i) {
    T weight = 0;
    if (batch.is_row(i)) {
      const int64_t row = batch.row[i];
      const Side& side = problem.sides[row < n ? 0 : 1];
      const T* const weights = static_cast<const T*>(side.sample_weights);
      weight = weights != nullptr ? weights[row < n ? row : row - n] : T(1);
    }
    store(batch.weight + i * kLanes<T>, broadcast(weight));
  }
}

// After the ids are there.
template <class T>
void find_id_ranges(const Batch<T>& batch) {
  for (int64_t g = 0; g < batch.problem.level_count; ++g) {
    const LevelIds& level = batch.levels[g];
    for (int64_t b = 0; b < batch.blocks(); ++b) {
      const Span rows = batch.block(b);
      IdRange range{INT32_MAX, -1, false, rows.size() % 32 != 0};
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        const int32_t id = level.id[i];
        if (id < 0) {
          range.gaps = true;
        } else {
          range.low = id < range.low ? id : range.low;
          range.high = id > range.high ? id : range.high;
        }
      }
      level.blocks[b] = range;
    }
  }
}

// The stages that make the means of all classes, after those of the rows.
template <class T>
class MeansStages {
 public:
  // wu: sample weights times row weights, one vector per row; null without row weights. rests:
  // whether ClassMeans::rest is needed.
  MeansStages(const Batch<T>& batch, const T* wu, bool rests) : batch_(batch), wu_(wu) {
    for (int64_t t = 0; batch.has_means() && t < 2 * batch.problem.level_count; ++t) {
      const ClassMeans<T>& means = batch.means[t];
      if (means.begin[means.classes] == 0) continue;
      parts_.emplace_back(batch, means, rests);
    }
  }

  void work(int64_t worker) {
    for (Part& part : parts_) {
      part.averages.work(worker, [&](int64_t, int64_t task) { average(part, task); });
    }
  }

  // What needs the means. After work; then all is done.
  void finish(int64_t worker) {
    const Batch<T>& x = batch_;
    for (Part& part : parts_) {
      part.averages.wait();
      const ClassMeans<T>& means = part.means;
      part.rests.work(worker, [&](int64_t, int64_t c) {
        means.rest[c] = spread_of_class(x.panels, x.l, x.p, x.weight, means, c);
      });
    }
    for (Part& part : parts_) part.rests.wait();
  }

 private:
  // The classes of one level, on one side.
  struct Part {
    const ClassMeans<T>& means;
    static constexpr int32_t kMostGroups = 64;
    int64_t groups;  // of classes, which lie in the order of the rows
    Stage averages, rests;

    Part(const Batch<T>& batch, const ClassMeans<T>& means, bool rests)
        : means(means),
          groups(std::min<int64_t>(means.classes, kMostGroups)),
          averages(batch.workers, groups * batch.panels.count()),
          rests(batch.workers, rests ? means.classes : 0) {}
  };

  void average(const Part& part, int64_t task) const {
    const Batch<T>& x = batch_;
    const int64_t panels = x.panels.count(), group = task / panels, classes = part.means.classes;
    const Span of_group{group * classes / part.groups, (group + 1) * classes / part.groups};
    average_classes(x.panels, x.l, x.p, x.weight, wu_, task % panels, of_group, part.means);
  }

  const Batch<T>& batch_;
  const T* wu_;
  std::list<Part> parts_;
};

// Everything about infinite pairs, for batches with masked classes.
template <class T>
struct Infinities {
  Buffer memory;
  Supports supports;

  explicit Infinities(Batch<T>& batch)
      : memory((Supports(batch.padded_rows, batch.problem.k).size() +
                2 * ((batch.problem.k + 63) / 64)) *
                       sizeof(uint64_t) +
                   batch.padded_rows,
               false),
        supports(batch.padded_rows, batch.problem.k) {
    uint64_t* words = reinterpret_cast<uint64_t*>(memory.data());
    supports.place(words);
    uint64_t* const scratch = words + supports.size();
    batch.infinite = reinterpret_cast<uint8_t*>(scratch + 2 * supports.words());
    for (int64_t i = 0; i < batch.padded_rows; ++i) {
      batch.infinite[i] = 0;
      if (!batch.is_row(i)) continue;
      supports.set_row(batch.problem, batch.panels, batch.row[i], i, batch.p, batch.scratch[0].z);
    }
    if (batch.problem.similarity != nullptr) return;  // mark_infinite, tile by tile
    for (int64_t g = 0; g < batch.problem.level_count; ++g) {
      for (int64_t side = 0; side < 2; ++side) {
        const int64_t other = batch.partner(side);
        const int32_t *members = batch.arrangement.members(g, side),
                      *partners = batch.arrangement.members(g, other);
        for (int64_t c = 0; c < batch.problem.levels[g].classes; ++c) {
          supports.find_infinite(
              batch.arrangement.member_positions(g, side) + members[c], members[c + 1] - members[c],
              batch.arrangement.member_positions(g, other) + partners[c],
              partners[c + 1] - partners[c], scratch, scratch + supports.words(), batch.infinite);
        }
      }
    }
  }

  // Marks both rows of the similar pairs with infinite KL. Several threads may mark one row.
  void mark_infinite(const Batch<T>& batch, Span rows, Span columns,
                     const uint32_t* similar) const {
    const int64_t words = round_up(columns.size(), 32) / 32;
    for (int64_t r = 0; r < rows.size(); ++r) {
      for (int64_t w = 0; w < words; ++w) {
        for (uint32_t left = similar[r * words + w]; left != 0; left &= left - 1) {
          const int64_t i = rows.begin + r, j = columns.begin + w * 32 + __builtin_ctz(left);
          if (!supports.is_infinite(i, j)) continue;
          __atomic_store_n(batch.infinite + i, uint8_t{1}, __ATOMIC_RELAXED);
          __atomic_store_n(batch.infinite + j, uint8_t{1}, __ATOMIC_RELAXED);
        }
      }
    }
  }
};

// Always in the same order: every eighth element, and then these eight sums.
inline double sum_in_order(const double* x, int64_t n) {
  double sums[8] = {};
  for (int64_t i = 0; i < n; i += 8) {
    for (int64_t j = 0; j < 8 && i + j < n; ++j) sums[j] += x[i + j];
  }
  double sum = 0.0;
  for (const double of_eighth : sums) sum += of_eighth;
  return sum;
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
