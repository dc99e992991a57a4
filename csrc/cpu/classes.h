// The rows of a batch, sorted by class.
#pragma once

#include <cstdint>
#include <vector>

namespace pairloss::cpu {

// Rows that share a label stand together, and ignored rows are left out. A "position" counts the
// rows in this order. Similar pairs are then ranges of positions, and the N x N similarity matrix
// is never formed.
struct Classes {
  std::vector<int64_t> row;      // position -> row of the input
  std::vector<int64_t> begin;    // class -> its first position; one more entry at the end
  std::vector<int64_t> of;       // position -> class
  std::vector<int64_t> ignored;  // rows that take no part

  int64_t rows() const { return static_cast<int64_t>(row.size()); }
  int64_t count() const { return static_cast<int64_t>(begin.size()) - 1; }
  int64_t size(int64_t c) const { return begin[c + 1] - begin[c]; }
  // Unordered pairs.
  int64_t pairs() const { return rows() * (rows() - 1) / 2; }
  int64_t similar_pairs() const;
};

// A stable counting sort where the labels span a small range, else a comparison sort.
Classes sort_by_class(const int64_t* labels, int64_t n, int64_t ignore_index);

}  // namespace pairloss::cpu
