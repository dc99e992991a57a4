// One bind_...() for each part of the kernels that is opened to pytest.
#pragma once

#include <pybind11/pybind11.h>

void bind_insides(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_labels(pybind11::module_& m);
void bind_pair_math(pybind11::module_& m);
void bind_schedule(pybind11::module_& m);
