#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "bindings.h"
#include "cpu/capability.h"
#include "insides.h"
#include "problems.h"

using namespace pairloss::cpu;
using pybind11::ssize_t;

namespace {

const Insides& insides(int64_t capability) {
  require(is_supported(static_cast<Capability>(capability)), "not on this processor");
  switch (static_cast<Capability>(capability)) {
#if defined(__x86_64__)
    case Capability::amx:
      return insides_amx::insides;
    case Capability::avx512:
      return insides_avx512::insides;
    case Capability::avx2:
      return insides_avx2::insides;
#endif
    default:
      return insides_baseline::insides;
  }
}

template <class T>
const InsidesOf<T>& insides_of(int64_t capability) {
  if constexpr (sizeof(T) == 8) {
    return insides(capability).of_double;
  } else {
    return insides(capability).of_float;
  }
}

// Logits decide T as in the kernels: "float64" logits are worked on in double.
template <class F>
auto for_element(const std::string& element, F&& f) {
  return element == "float64" ? pybind11::object(f(double())) : pybind11::object(f(float()));
}

ssize_t words_of(ssize_t columns) { return (columns + 31) / 32; }

template <class T>
pybind11::dict rows(int64_t capability, const OwnedProblem& problem) {
  const ssize_t n = problem.positions(), k = problem.problem.k;
  Array<T> p = zeros<T>({n, k}), l = zeros<T>({n, k}), h = zeros<T>({n}), reference = zeros<T>({k});
  Array<bool> nan = zeros<bool>({n}), masked = zeros<bool>({n});
  double log_sum = 0.0;
  insides_of<T>(capability)
      .rows(problem.problem,
            {p.mutable_data(), l.mutable_data(), h.mutable_data(), reference.mutable_data(),
             &log_sum, nan.mutable_data(), masked.mutable_data()});
  pybind11::dict result;
  result["p"] = p, result["l"] = l, result["h"] = h;
  result["reference"] = reference, result["log_sum"] = log_sum;
  result["nan"] = nan, result["masked"] = masked;
  return result;
}

template <class T>
pybind11::dict means(int64_t capability, const OwnedProblem& problem,
                     const pybind11::object& weights, const pybind11::object& row_weights) {
  const ssize_t classes = problem.level.classes, k = problem.problem.k;
  Array<T> l = zeros<T>({classes, k}), p = zeros<T>({classes, k}), weight = zeros<T>({classes});
  Array<T> weighted_l = zeros<T>({classes, k}), weighted_p = zeros<T>({classes, k});
  Array<T> weighted_weight = zeros<T>({classes});
  Array<double> rest = zeros<double>({classes});
  std::optional<Array<T>> w, u;
  if (!weights.is_none()) {
    w = weights.cast<Array<T>>(), u = row_weights.cast<Array<T>>();
    require(w->size() == problem.positions() && u->size() == w->size(), "a weight per position");
  }
  insides_of<T>(capability)
      .means(problem.problem, w ? w->data() : nullptr, u ? u->data() : nullptr,
             {l.mutable_data(), p.mutable_data(), weight.mutable_data(), weighted_l.mutable_data(),
              weighted_p.mutable_data(), weighted_weight.mutable_data(), rest.mutable_data()});
  pybind11::dict result;
  result["l"] = l, result["p"] = p, result["weight"] = weight, result["rest"] = rest;
  result["weighted_l"] = weighted_l, result["weighted_p"] = weighted_p;
  result["weighted_weight"] = weighted_weight;
  return result;
}

template <class T>
pybind11::tuple supports(int64_t capability, const OwnedProblem& problem,
                         const Array<uint32_t>& bits) {
  const ssize_t n = problem.positions();
  require(bits.size() == n * words_of(n), "bits do not fit the rows");
  Array<bool> infinite = zeros<bool>({n, n}), in_class = zeros<bool>({n});
  Array<uint32_t> cleared = copy(bits);
  insides_of<T>(capability)
      .supports(problem.problem, infinite.mutable_data(), in_class.mutable_data(),
                cleared.mutable_data());
  return pybind11::make_tuple(infinite, in_class, cleared);
}

template <class T>
pybind11::tuple add_selected(int64_t capability, const Array<T>& source,
                             const Array<uint32_t>& bits, const Array<T>& destination,
                             const Array<int32_t>& counts) {
  const ssize_t rows = bits.shape(0), words = bits.shape(1), columns = source.shape(1);
  require(source.shape(0) == words * 32 && destination.shape(0) == rows && counts.size() == rows &&
              destination.shape(1) == columns,
          "shapes do not fit");
  Array<T> sums = copy(destination);
  Array<int32_t> new_counts = copy(counts);
  insides_of<T>(capability)
      .add_selected(source.data(), bits.data(), rows, words, columns, sums.mutable_data(),
                    new_counts.mutable_data());
  return pybind11::make_tuple(sums, new_counts);
}

template <class T>
Array<T> exponential(int64_t capability, const Array<T>& x) {
  Array<T> y = zeros<T>({x.size()});
  insides_of<T>(capability).exponential(x.data(), x.size(), y.mutable_data());
  return y;
}

template <class T>
pybind11::tuple horizontal_sums(int64_t capability, const Array<T>& x) {
  const InsidesOf<T>& inside = insides_of<T>(capability);
  const ssize_t rows = x.shape(0);
  require(x.shape(1) == inside.lanes && rows % 8 == 0, "vectors, a multiple of 8");
  Array<double> one_by_one = zeros<double>({rows}), at_once = zeros<double>({rows});
  inside.horizontal_sums(x.data(), rows, one_by_one.mutable_data(), at_once.mutable_data());
  return pybind11::make_tuple(one_by_one, at_once);
}

Array<double> logarithm(int64_t capability, const Array<double>& x) {
  Array<double> y = zeros<double>({x.size()});
  insides(capability).logarithm(x.data(), x.size(), y.mutable_data());
  return y;
}

Array<float> widen(void (*convert)(const uint16_t*, int64_t, float*), const Array<uint16_t>& x) {
  Array<float> y = zeros<float>({x.size()});
  convert(x.data(), x.size(), y.mutable_data());
  return y;
}

}  // namespace

void bind_insides(pybind11::module_& m) {
  using pybind11::arg;
  m.def("rows", [](int64_t capability, const pybind11::array& logits, const std::string& element,
                   const Array<int64_t>& labels) {
    const OwnedProblem problem(logits, element, labels);
    return for_element(element, [&](auto t) { return rows<decltype(t)>(capability, problem); });
  });
  m.def("means", [](int64_t capability, const pybind11::array& logits, const std::string& element,
                    const Array<int64_t>& labels, const pybind11::object& weights,
                    const pybind11::object& row_weights) {
    const OwnedProblem problem(logits, element, labels);
    return for_element(element, [&](auto t) {
      return means<decltype(t)>(capability, problem, weights, row_weights);
    });
  });
  m.def("find_active",
        [](int64_t capability, const pybind11::array& logits, const std::string& element,
           const Array<int64_t>& labels, double margin, int64_t tile, bool certifies) {
          require(!certifies || tile % 256 == 0, "certificates need tiles of 256");
          const OwnedProblem problem(logits, element, labels, margin);
          const ssize_t n = problem.positions();
          Array<uint32_t> bits = zeros<uint32_t>({n, words_of(n)});
          return for_element(element, [&](auto t) {
            insides_of<decltype(t)>(capability)
                .find_active(problem.problem, tile, certifies, bits.mutable_data());
            return bits;
          });
        });
  m.def("find_certain", [](int64_t capability, const pybind11::array& logits,
                           const std::string& element, const Array<int64_t>& labels, double margin,
                           int64_t tile) {
    const OwnedProblem problem(logits, element, labels, margin);
    const ssize_t n = std::min<int64_t>(problem.positions(), tile);
    Array<uint16_t> active = zeros<uint16_t>({n}), inactive = zeros<uint16_t>({n});
    return for_element(element, [&](auto t) {
      insides_of<decltype(t)>(capability)
          .find_certain(problem.problem, tile, active.mutable_data(), inactive.mutable_data());
      return pybind11::make_tuple(active, inactive);
    });
  });
  m.def("find_tile_states",
        [](int64_t capability, const pybind11::array& logits, const std::string& element,
           const Array<int64_t>& labels, double margin, int64_t tile) {
          const OwnedProblem problem(logits, element, labels, margin);
          const ssize_t blocks = (problem.positions() + tile - 1) / tile;
          Array<int8_t> states = zeros<int8_t>({blocks, blocks});
          return for_element(element, [&](auto t) {
            insides_of<decltype(t)>(capability)
                .find_tile_states(problem.problem, tile, states.mutable_data());
            return states;
          });
        });
  m.def("supports",
        [](int64_t capability, const pybind11::array& logits, const std::string& element,
           const Array<int64_t>& labels, const Array<uint32_t>& bits) {
          const OwnedProblem problem(logits, element, labels);
          return for_element(
              element, [&](auto t) { return supports<decltype(t)>(capability, problem, bits); });
        });
  m.def("add_selected", &add_selected<float>, arg(), arg().noconvert(), arg(), arg(), arg());
  m.def("add_selected", &add_selected<double>, arg(), arg().noconvert(), arg(), arg(), arg());
  m.def("exponential", &exponential<float>, arg(), arg().noconvert());
  m.def("exponential", &exponential<double>, arg(), arg().noconvert());
  m.def("horizontal_sums", &horizontal_sums<float>, arg(), arg().noconvert());
  m.def("horizontal_sums", &horizontal_sums<double>, arg(), arg().noconvert());
  m.def("lanes", [](int64_t capability, bool in_double) {
    return in_double ? insides(capability).of_double.lanes : insides(capability).of_float.lanes;
  });
  m.def("logarithm", &logarithm);
  m.def("half_to_float", [](int64_t capability, const Array<uint16_t>& x) {
    return widen(insides(capability).half_to_float, x);
  });
  m.def("bfloat16_to_float", [](int64_t capability, const Array<uint16_t>& x) {
    return widen(insides(capability).bfloat16_to_float, x);
  });
  m.def("transpose_bits", [](int64_t capability, const Array<uint32_t>& bits) {
    const ssize_t rows = bits.shape(0), columns = bits.shape(1) * 32;
    require(rows % 32 == 0, "whole words of rows");
    Array<uint32_t> transposed = zeros<uint32_t>({columns, rows / 32});
    insides(capability).transpose_bits(bits.data(), rows, columns, transposed.mutable_data());
    return transposed;
  });
  m.def("keep_dissimilar",
        [](int64_t capability, const Array<int32_t>& ids, const Array<uint32_t>& bits) {
          require(ids.size() == bits.shape(0) && ids.size() <= 512, "one tile");
          // The kernel clears the padding to whole words of rows, too.
          Array<uint32_t> kept = zeros<uint32_t>({words_of(ids.size()) * 32, bits.shape(1)});
          std::copy_n(bits.data(), bits.size(), kept.mutable_data());
          insides(capability).keep_dissimilar(ids.data(), ids.size(), kept.mutable_data());
          return kept;
        });
  m.def("split_similarity", [](int64_t capability, const Array<int8_t>& similarity,
                               const Array<uint32_t>& bits) {
    const ssize_t n = similarity.shape(0), words = words_of(n);
    Array<uint32_t> negative = zeros<uint32_t>({words * 32, words});
    Array<uint32_t> positive = zeros<uint32_t>({words * 32, words});
    std::copy_n(bits.data(), bits.size(), negative.mutable_data());
    insides(capability)
        .split_similarity(similarity.data(), n, negative.mutable_data(), positive.mutable_data());
    return pybind11::make_tuple(negative, positive);
  });
  m.def("panel_width", [](int64_t capability, bool is_double) {
    return is_double ? insides(capability).of_double.panel_width
                     : insides(capability).of_float.panel_width;
  });
}
