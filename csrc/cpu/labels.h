// Who is similar to whom, by labels; and the order in which the kernels see the rows.
#pragma once

#include <cstdint>
#include <vector>

namespace pairloss::cpu {

// One level of labels.
struct Level {
  // Per row of the batch, then of the reference set: its class, 0 .. classes - 1, or -1 where the
  // row takes no part in this level.
  std::vector<int32_t> id;
  int32_t classes = 0;
  // Unordered pairs of each kind.
  double similar_pairs = 0.0, dissimilar_pairs = 0.0;
  // What l_ij of each kind is multiplied by.
  double similar_scale = 1.0, dissimilar_scale = 1.0;
};

// Labels of n rows of the batch, `stride` apart, and of m rows of the reference set. Pairs are
// those of the batch, or if `cross`, those of the batch with the reference set. Where a level has
// no pair at all, no row takes part in it.
Level make_level(const int64_t* labels, int64_t n, const int64_t* ref_labels, int64_t m, bool cross,
                 int64_t stride, int64_t ignore_index);

// A row's place among those of its class: rows that are alike should be neighbours.
struct Likeness {
  int32_t largest;  // the number of its largest logit
  uint8_t confidence;
};

// The rows in the order in which the kernels see them: a "position" counts them. Rows of the batch
// come first, rows of the reference set begin at a multiple of `alignment`. Rows that take part in
// no level are left out. Those of a class stand together (of the level with the fewest classes
// first), within it those of equal likeness (null: in the given order).
//
// Not inline, so that no instruction set's copy of it can be linked into another's.
class Arrangement {
 public:
  Arrangement(const Level* levels, int64_t level_count, int64_t n, int64_t m,
              const Likeness* likeness, int64_t columns, int64_t alignment);
  ~Arrangement();
  Arrangement(const Arrangement&) = delete;
  Arrangement& operator=(const Arrangement&) = delete;

  // Of the batch (0) and of the reference set (1).
  int64_t begin(int64_t side) const { return begin_[side]; }
  int64_t end(int64_t side) const { return end_[side]; }
  int64_t positions() const { return end_[1]; }

  // Position -> row of the batch, then of the reference set; -1 where there is none.
  const int64_t* row() const;
  // The positions of class c of a level: from members(..)[c] up to members(..)[c + 1], as places in
  // member_positions.
  const int32_t* members(int64_t level, int64_t side) const;
  const int32_t* member_positions(int64_t level, int64_t side) const;

 private:
  struct Members {
    std::vector<int32_t> position, begin;
  };
  void arrange(const Level* levels, int64_t level_count, int64_t side, int64_t n, int64_t m,
               const Likeness* likeness, int64_t columns, int64_t alignment);
  Members find_members(const Level& level, int64_t side) const;

  std::vector<int64_t> row_;
  int64_t begin_[2], end_[2];
  std::vector<Members> members_;  // [level][side]
};

}  // namespace pairloss::cpu
