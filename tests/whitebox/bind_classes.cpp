#include <pybind11/stl.h>

#include "arrays.h"
#include "bindings.h"
#include "cpu/classes.h"

using namespace pairloss::cpu;

void bind_classes(pybind11::module_& m) {
  pybind11::class_<Classes>(m, "Classes")
      .def_readonly("row", &Classes::row)
      .def_readonly("begin", &Classes::begin)
      .def_readonly("of", &Classes::of)
      .def_readonly("ignored", &Classes::ignored)
      .def_property_readonly("count", &Classes::count)
      .def_property_readonly("pairs", &Classes::pairs)
      .def_property_readonly("similar_pairs", &Classes::similar_pairs);
  m.def("sort_by_class", [](const Array<int64_t>& labels, int64_t ignore_index) {
    return sort_by_class(labels.data(), labels.size(), ignore_index);
  });
}
