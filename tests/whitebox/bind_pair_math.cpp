#include <string>

#include "bindings.h"
#include "pair_math.h"

using namespace pairloss;

namespace {

template <class T>
void bind_formulas(pybind11::module_ m) {
  m.def("is_finite", &is_finite<T>);
  m.def("is_active", &is_active<T>);
  m.def("pair_loss", &pair_loss<T>);
  m.def("kl_term", &kl_term<T>);
  m.def("flush_probability", &flush_probability<T>);
}

}  // namespace

void bind_pair_math(pybind11::module_& m) {
  bind_formulas<float>(m.def_submodule("float32"));
  bind_formulas<double>(m.def_submodule("float64"));
  m.def("unordered_pairs", &unordered_pairs);
  m.def("reduction_scale", [](int64_t reduction, int64_t valid_rows) {
    return reduction_scale(static_cast<Reduction>(reduction), valid_rows);
  });
}
