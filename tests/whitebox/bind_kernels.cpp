#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "bindings.h"
#include "cpu/capability.h"
#include "problems.h"
#include "threads.h"

using namespace pairloss::cpu;

namespace {

struct Options {
  int64_t capability;
  double margin;
  bool second_only;
  int64_t workers;
  std::string how;

  const Kernels& kernels() const { return kernels_for(static_cast<Capability>(capability)); }
};

using Sums = std::tuple<double, double, int64_t>;

Sums as_tuple(const PairSums& sums) { return {sums.similar, sums.dissimilar, sums.active}; }

std::pair<Sums, std::optional<Array<double>>> value(const pybind11::array& logits,
                                                    const std::string& element,
                                                    const Array<int64_t>& labels,
                                                    const Options& options, bool by_row) {
  const OwnedProblem problem(logits, element, labels, options.margin, options.second_only);
  std::optional<Array<double>> rows;
  if (by_row) rows = zeros<double>({logits.shape(0)});
  double* const row_losses = by_row ? rows->mutable_data() : nullptr;
  const Workers workers = make_workers(options.workers, options.how);
  PairSums sums;
  {
    const pybind11::gil_scoped_release without_gil;
    options.kernels().value(problem.problem, workers, &sums, row_losses);
  }
  return {as_tuple(sums), rows};
}

template <class T>
std::pair<Sums, pybind11::array> gradient_of(OwnedProblem& problem, const Options& options,
                                             const pybind11::object& row_weights) {
  Array<T> grad = zeros<T>({problem.logits.shape(0), problem.logits.shape(1)});
  std::optional<Array<T>> u;
  if (!row_weights.is_none()) {
    u = row_weights.cast<Array<T>>();
    require(u->size() == problem.logits.shape(0), "row weights do not fit the logits");
  }
  const void* const weights = u ? u->data() : nullptr;
  problem.problem.sides[0].grad = grad.mutable_data();
  const Workers workers = make_workers(options.workers, options.how);
  PairSums sums;
  {
    const pybind11::gil_scoped_release without_gil;
    options.kernels().gradient(problem.problem, workers, weights, &sums);
  }
  return {as_tuple(sums), grad};
}

std::pair<Sums, pybind11::array> gradient(const pybind11::array& logits, const std::string& element,
                                          const Array<int64_t>& labels, const Options& options,
                                          double scale, const pybind11::object& row_weights) {
  OwnedProblem problem(logits, element, labels, options.margin, options.second_only);
  problem.level.similar_scale = problem.level.dissimilar_scale = scale;
  return element == "float64" ? gradient_of<double>(problem, options, row_weights)
                              : gradient_of<float>(problem, options, row_weights);
}

}  // namespace

void bind_kernels(pybind11::module_& m) {
  pybind11::class_<Options>(m, "Options")
      .def(pybind11::init<int64_t, double, bool, int64_t, std::string>());
  m.def("is_supported",
        [](int64_t capability) { return is_supported(static_cast<Capability>(capability)); });
  m.def("value", &value);
  m.def("gradient", &gradient);
}
