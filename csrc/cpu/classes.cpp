#include "cpu/classes.h"

#include <algorithm>
#include <numeric>

namespace pairloss::cpu {
namespace {

// Positions of labels within [low, low + range): one pass to count, one to place.
void counting_sort(const int64_t* labels, int64_t low, int64_t range, std::vector<int64_t>& row) {
  std::vector<int64_t> place(range + 1, 0), sorted(row.size());
  for (int64_t i : row) ++place[labels[i] - low + 1];
  std::partial_sum(place.begin(), place.end(), place.begin());
  for (int64_t i : row) sorted[place[labels[i] - low]++] = i;
  row.swap(sorted);
}

}  // namespace

int64_t Classes::similar_pairs() const {
  int64_t pairs = 0;
  for (int64_t c = 0; c < count(); ++c) pairs += size(c) * (size(c) - 1) / 2;
  return pairs;
}

Classes sort_by_class(const int64_t* labels, int64_t n, int64_t ignore_index) {
  Classes classes;
  classes.row.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    (labels[i] == ignore_index ? classes.ignored : classes.row).push_back(i);
  }
  auto& row = classes.row;
  classes.begin.push_back(0);
  if (row.empty()) return classes;

  int64_t low = labels[row[0]], high = low;
  for (int64_t i : row) {
    low = std::min(low, labels[i]);
    high = std::max(high, labels[i]);
  }
  // Unsigned: the distance of two int64 labels may not fit into an int64.
  const uint64_t range = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
  if (range < 4 * static_cast<uint64_t>(n) + 1024) {
    counting_sort(labels, low, static_cast<int64_t>(range) + 1, row);
  } else {
    std::stable_sort(row.begin(), row.end(),
                     [&](int64_t a, int64_t b) { return labels[a] < labels[b]; });
  }

  const int64_t rows = classes.rows();
  classes.of.resize(rows);
  for (int64_t p = 0; p < rows; ++p) {
    if (p > 0 && labels[row[p]] != labels[row[p - 1]]) classes.begin.push_back(p);
    classes.of[p] = static_cast<int64_t>(classes.begin.size()) - 1;
  }
  classes.begin.push_back(rows);
  return classes;
}

}  // namespace pairloss::cpu
