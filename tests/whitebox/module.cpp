// The white-box test module.
#include <vector>

#include "bindings.h"

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

  bind_insides(m);
  bind_kernels(m);
  bind_labels(m);
  bind_pair_math(m);
  bind_schedule(m);
}
