#include <pybind11/stl.h>

#include <memory>

#include "arrays.h"
#include "bindings.h"
#include "cpu/labels.h"
#include "cpu/similarity.h"
#include "threads.h"

using namespace pairloss::cpu;

namespace {

pybind11::dict level(const Level& level) {
  pybind11::dict result;
  result["id"] = level.id, result["classes"] = level.classes;
  result["pairs"] = std::pair(level.similar_pairs, level.dissimilar_pairs);
  return result;
}

// Positions of both sides; and for every level and side, the positions of every class.
pybind11::dict arrange(const std::vector<std::vector<int32_t>>& ids, int64_t n,
                       const std::vector<std::pair<int32_t, int>>& likeness, int64_t columns,
                       int64_t alignment) {
  std::vector<Level> levels(ids.size());
  for (size_t g = 0; g < ids.size(); ++g) {
    levels[g].id = ids[g];
    for (int32_t id : ids[g]) levels[g].classes = std::max(levels[g].classes, id + 1);
  }
  std::vector<Likeness> like;
  for (const auto& [largest, confidence] : likeness) {
    like.push_back({largest, static_cast<uint8_t>(confidence)});
  }
  const auto count = static_cast<int64_t>(levels.size());
  const int64_t rows = static_cast<int64_t>(ids.at(0).size());
  const Arrangement arrangement(levels.data(), count, n, rows - n,
                                like.empty() ? nullptr : like.data(), columns, alignment);
  pybind11::dict result;
  const int64_t* const row = arrangement.row();
  result["row"] = std::vector<int64_t>(row, row + arrangement.positions());
  std::vector<std::pair<int64_t, int64_t>> sides;
  std::vector<std::vector<std::vector<int32_t>>> members;
  for (int64_t side = 0; side < 2; ++side) {
    sides.emplace_back(arrangement.begin(side), arrangement.end(side));
  }
  for (int64_t g = 0; g < count; ++g) {
    for (int64_t side = 0; side < 2; ++side) {
      const int32_t *begin = arrangement.members(g, side),
                    *position = arrangement.member_positions(g, side);
      std::vector<std::vector<int32_t>> of_side;
      for (int32_t c = 0; c < levels[g].classes; ++c) {
        of_side.emplace_back(position + begin[c], position + begin[c + 1]);
      }
      members.push_back(of_side);
    }
  }
  result["sides"] = sides, result["members"] = members;
  return result;
}

}  // namespace

void bind_labels(pybind11::module_& m) {
  m.def("make_level", [](const Array<int64_t>& labels, int64_t n, bool cross,
                         int64_t ignore_index) {
    require(labels.ndim() == 1, "one level");
    const int64_t rows = labels.size();
    return level(make_level(labels.data(), n, labels.data() + n, rows - n, cross, 1, ignore_index));
  });
  m.def("make_level_of_matrix", [](const Array<int8_t>& similarity, int64_t workers) {
    return level(make_level_of_matrix(similarity.data(), similarity.shape(0),
                                      make_workers(workers, "threads")));
  });
  m.def("arrange", &arrange);
}
