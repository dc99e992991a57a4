// numpy arrays as arguments and results.
#pragma once

#include <pybind11/numpy.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace pairloss::cpu {

// Only what is contiguous and of this dtype already: nothing is converted behind a test's back.
template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

template <class T>
Array<T> zeros(std::initializer_list<pybind11::ssize_t> shape) {
  Array<T> array{std::vector<pybind11::ssize_t>(shape)};
  std::fill_n(array.mutable_data(), array.size(), T{});
  return array;
}

template <class T>
Array<T> copy(const Array<T>& array) {
  Array<T> result(std::vector<pybind11::ssize_t>(array.shape(), array.shape() + array.ndim()));
  std::copy_n(array.data(), array.size(), result.mutable_data());
  return result;
}

inline void require(bool condition, const std::string& what) {
  if (!condition) throw std::invalid_argument(what);
}

}  // namespace pairloss::cpu
