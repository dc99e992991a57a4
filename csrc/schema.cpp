// The operators of pairloss: their schemas and nothing else. The kernels register themselves at the
// end of the file that holds them (cpu/pair_kl_hinge.cpp, cuda/pair_kl_hinge.cu, ...); autograd,
// autocast and the shape functions are registered from Python (pairloss/_ops/), because the stable
// ABI has none of them.
#include <torch/csrc/stable/library.h>

// labels (N,) or (N, G) int64, or similarity (N, N) int8: one of the two. ref_logits (M, K) and
// ref_labels (M,) or (M, G): pairs of the batch with a reference set instead of pairs of the batch.
// sample_weights (N,), ref_sample_weights (M,): pair (i, j) weighs w_i w_j. level_weights (G,)
// float64, on the CPU.
#define PAIRLOSS_INPUTS                                                                  \
  "Tensor logits, Tensor? labels, Tensor? similarity, Tensor? ref_logits, "              \
  "Tensor? ref_labels, Tensor? sample_weights, Tensor? ref_sample_weights, "             \
  "Tensor? level_weights, float margin, int gradient, int reduction, int ignore_index, " \
  "float similar_weight, float dissimilar_weight, bool balance, int precision, "         \
  "bool with_grad, bool with_ref_grad"

// pairs (E, 2) int64: rows of logits, similar (E,) bool. pair_weights (E,).
#define PAIRLOSS_LIST_INPUTS                                                          \
  "Tensor logits, Tensor pairs, Tensor similar, Tensor? pair_weights, float margin, " \
  "int gradient, int reduction, float similar_weight, float dissimilar_weight, "      \
  "bool balance, bool with_grad"

STABLE_TORCH_LIBRARY(pairloss, m) {
  // gradient: 0 both, 1 second.  reduction: 0 none, 1 mean, 2 sum.  precision: 0 fp32, 1 tf32x3,
  // 2 bf16x3, 3 tf32, of CUDA's tensor cores.  The codes are ints, not strings, because a str
  // argument leaks at every call under the headers of older releases.
  // loss: 0-d, or (N,) for reduction none.  stats: (5, G) float64, see PairStats.  grad and
  // ref_grad: of the loss with respect to the logits; empty unless asked for, and for none.
  m.def("pair_kl_hinge(" PAIRLOSS_INPUTS
        ") -> (Tensor loss, Tensor stats, Tensor grad, Tensor ref_grad)");
  // The gradient of reduction=none: every row has an upstream gradient of its own.
  m.def("pair_kl_hinge_backward(Tensor grad_output, " PAIRLOSS_INPUTS
        ") -> (Tensor grad, Tensor ref_grad)");
  // The same over a list of pairs; stats: (5, 1).
  m.def("pair_list_kl_hinge(" PAIRLOSS_LIST_INPUTS ") -> (Tensor loss, Tensor stats, Tensor grad)");
  m.def("pair_list_kl_hinge_backward(Tensor grad_output, " PAIRLOSS_LIST_INPUTS ") -> Tensor");
  // 0 baseline, 1 AVX2, 2 AVX-512, 3 AVX-512 with AMX: what the CPU kernels run with.
  m.def("cpu_capability() -> int");
}
