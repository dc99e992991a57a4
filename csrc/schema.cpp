// The operators of pairloss: their schemas and nothing else. The kernels register themselves at the
// end of the file that holds them (cpu/pair_kl_hinge.cpp, cuda/pair_kl_hinge.cu); autograd,
// autocast and the shape functions are registered from Python (pairloss/_ops/), because the stable
// ABI has none of them.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pairloss, m) {
  // gradient: 0 both, 1 second.  reduction: 0 none, 1 mean, 2 sum.  The codes are ints, not
  // strings, because a str argument leaks at every call under the headers of older releases.
  m.def(
      "pair_kl_hinge(Tensor logits, Tensor labels, float margin, int gradient, int reduction, "
      "int ignore_index, bool with_grad) -> (Tensor loss, Tensor stats, Tensor grad)");
  // The gradient of reduction=none: every row has an upstream gradient of its own.
  m.def(
      "pair_kl_hinge_backward(Tensor grad_output, Tensor logits, Tensor labels, float margin, "
      "int gradient, int ignore_index) -> Tensor");
  // 0 baseline, 1 AVX2, 2 AVX-512: what the CPU kernels run with.
  m.def("cpu_capability() -> int");
}
