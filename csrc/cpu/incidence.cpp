#include "cpu/incidence.h"

#include <numeric>

namespace pairloss::cpu {

int64_t find_bad_index(const PairList& list) {
  const uint64_t rows = static_cast<uint64_t>(list.rows);
  for (int64_t i = 0; i < 2 * list.count; ++i) {
    if (static_cast<uint64_t>(list.pairs[i]) >= rows) return i;  // also where negative
  }
  return -1;
}

// Counting sort: one pass to count, one to place.
Incidence make_incidence(const PairList& list, bool with_pair) {
  Incidence result;
  auto& begin = result.begin;
  begin.assign(list.rows + 1, 0);
  for (int64_t e = 0; e < list.count; ++e) {
    const int64_t a = list.pairs[2 * e], b = list.pairs[2 * e + 1];
    if (a == b) continue;
    ++begin[a + 1];
    ++begin[b + 1];
    ++(list.similar[e] ? result.similar_pairs : result.dissimilar_pairs);
  }
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  result.partner.resize(begin.back());
  if (with_pair) result.pair.resize(begin.back());
  std::vector<int64_t> place(begin.begin(), begin.end() - 1);
  for (int64_t e = 0; e < list.count; ++e) {
    const int64_t a = list.pairs[2 * e], b = list.pairs[2 * e + 1];
    if (a == b) continue;
    const int64_t of_a = place[a]++, of_b = place[b]++;
    result.partner[of_a] = 2 * b + list.similar[e];
    result.partner[of_b] = 2 * a + list.similar[e];
    if (with_pair) result.pair[of_a] = result.pair[of_b] = e;
  }
  return result;
}

}  // namespace pairloss::cpu
