// A list of pairs turned into lists of partners, one for every row.
#pragma once

#include <cstdint>
#include <vector>

namespace pairloss::cpu {

struct PairList {
  int64_t rows, count;
  const int64_t* pairs;  // (count, 2)
  const bool* similar;   // (count,)
};

// The first entry of the list, flattened, that is no row; -1 if all are.
int64_t find_bad_index(const PairList& list);

// A pair stands in the lists of both its rows, in the order of the list of pairs; a pair of a row
// with itself in none.
struct Incidence {
  std::vector<int64_t> begin;    // (rows + 1,): where each row's partners are
  std::vector<int64_t> partner;  // 2 x row + (1 for a similar pair)
  std::vector<int64_t> pair;     // its number in the list; only if asked for
  int64_t similar_pairs = 0, dissimilar_pairs = 0;

  int64_t rows() const { return static_cast<int64_t>(begin.size()) - 1; }
  int64_t degree(int64_t row) const { return begin[row + 1] - begin[row]; }
};

// All indices must be rows.
Incidence make_incidence(const PairList& list, bool with_pair);

}  // namespace pairloss::cpu
