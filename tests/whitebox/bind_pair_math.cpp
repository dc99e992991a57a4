#include <pybind11/stl.h>

#include <string>
#include <utility>

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
  m.def("kind_scales", [](int64_t reduction, double similar_pairs, double dissimilar_pairs,
                          double similar_weight, double dissimilar_weight, bool balance) {
    const KindScales scales =
        kind_scales(static_cast<Reduction>(reduction), similar_pairs, dissimilar_pairs,
                    similar_weight, dissimilar_weight, balance);
    return std::pair(scales.similar, scales.dissimilar);
  });
}
