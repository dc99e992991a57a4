// A Problem that owns what it points to.
#pragma once

#include <map>

#include "arrays.h"
#include "cpu/labels.h"
#include "cpu/pair_kl_hinge.h"

namespace pairloss::cpu {

struct OwnedProblem {
  pybind11::array logits;
  Level level;
  Problem problem;

  // element: "float64", "float32", or "float16" and "bfloat16" as uint16.
  OwnedProblem(const pybind11::array& given, const std::string& element,
               const Array<int64_t>& labels, double margin = 2.0, bool second_only = false,
               int64_t ignore_index = -100)
      : logits(given) {
    static const std::map<std::string, std::pair<Element, pybind11::ssize_t>> elements{
        {"float64", {Element::float64, 8}},
        {"float32", {Element::float32, 4}},
        {"float16", {Element::float16, 2}},
        {"bfloat16", {Element::bfloat16, 2}}};
    const auto [kind, size] = elements.at(element);
    require(logits.ndim() == 2 && logits.itemsize() == size, "logits do not fit " + element);
    require((logits.flags() & pybind11::array::c_style) != 0, "logits are not contiguous");
    require(labels.ndim() == 1 && labels.size() == logits.shape(0), "labels do not fit the logits");
    level = make_level(labels.data(), labels.size(), nullptr, 0, false, 1, ignore_index);
    problem = Problem{};
    problem.sides[0].logits = logits.data();
    problem.sides[0].n = logits.shape(0);
    problem.element = kind;
    problem.k = logits.shape(1);
    problem.margin = margin;
    problem.second_only = second_only;
    problem.levels = &level;
    problem.level_count = 1;
  }
  OwnedProblem(const OwnedProblem&) = delete;

  // Rows that take part.
  int64_t positions() const {
    int64_t count = 0;
    for (int32_t id : level.id) count += id >= 0;
    return count;
  }
};

}  // namespace pairloss::cpu
