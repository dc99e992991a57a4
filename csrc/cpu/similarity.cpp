#include "cpu/similarity.h"

#include <mutex>

namespace pairloss::cpu {

Level make_level_of_matrix(const int8_t* similarity, int64_t n, const Workers& workers) {
  constexpr int64_t kRowsAtOnce = 64;
  std::vector<uint8_t> in_row(n, 0), in_column(n, 0);
  int64_t similar = 0, dissimilar = 0;
  std::mutex mutex;
  for_each_task(workers, (n + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t, int64_t task) {
    std::vector<uint8_t> columns(n, 0);
    int64_t positive = 0, negative = 0;
    for (int64_t i = task * kRowsAtOnce; i < n && i < (task + 1) * kRowsAtOnce; ++i) {
      const int8_t* row = similarity + i * n;
      int32_t above = 0, below = 0;
      const uint8_t column_i = columns[i];
      for (int64_t j = 0; j < n; ++j) {
        above += row[j] > 0;
        below += row[j] < 0;
        columns[j] |= row[j] != 0;
      }
      columns[i] = column_i;
      above -= row[i] > 0;
      below -= row[i] < 0;
      in_row[i] = above + below > 0;
      positive += above;
      negative += below;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    similar += positive;
    dissimilar += negative;
    for (int64_t j = 0; j < n; ++j) in_column[j] |= columns[j];
  });
  Level level;
  level.classes = 1;
  level.similar_pairs = static_cast<double>(similar) / 2.0;
  level.dissimilar_pairs = static_cast<double>(dissimilar) / 2.0;
  level.id.resize(n);
  for (int64_t i = 0; i < n; ++i) level.id[i] = in_row[i] || in_column[i] ? 0 : -1;
  return level;
}

}  // namespace pairloss::cpu
