// The white-box test module: one bind_...() for each part of the kernels that is opened to pytest.
#include <pybind11/pybind11.h>

#include <vector>

PYBIND11_MODULE(pairloss_whitebox, m) {
#if defined(__SANITIZE_ADDRESS__)
  m.attr("sanitized") = true;
#else
  m.attr("sanitized") = false;
#endif
  // Bugs, planted to see that the sanitizers bite.
  m.def("read_past_the_end", [](int size) {
    std::vector<int> values(size);
    return values.data()[size];
  });
  m.def("overflow_an_int", [](int value) { return value + 1; });
}
