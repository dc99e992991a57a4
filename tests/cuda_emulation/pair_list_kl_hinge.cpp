// The launches of csrc/cuda/pair_list_kl_hinge.cuh behind a C interface, for ctypes (see
// pair_list_emulation.py).
#include "cuda/pair_list_kl_hinge.cuh"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdlib>
#include <cstring>
#include <memory>

namespace {

using namespace pairloss;
using namespace pairloss::cuda;

// As in pair_list_emulation.py.
struct Call {
  int64_t element;  // 0 float64, 1 float32, 2 float16, 3 bfloat16
  int64_t rows, classes, count;
  const void *logits, *pairs, *sorted, *order, *similar, *pair_weights;
  const void* upstream;  // null: the forward op. Else the backward of reduction none, grad in the
                         // type of logits
  double margin, similar_weight, dissimilar_weight;
  int64_t balance, gradient, reduction;
  void *loss, *stats, *grad;
  int64_t seed;  // order of threads and blocks
};

template <typename scalar_t, typename acc_t, typename out_t>
void run(const Call& from) {
  PairListCall<scalar_t, acc_t, out_t> call;
  call.rows = from.rows;
  call.classes = from.classes;
  call.count = from.count;
  call.logits = static_cast<const scalar_t*>(from.logits);
  call.pairs = static_cast<const int64_t*>(from.pairs);
  call.sorted = static_cast<const int64_t*>(from.sorted);
  call.order = static_cast<const int64_t*>(from.order);
  call.similar = static_cast<const bool*>(from.similar);
  call.pair_weights = static_cast<const acc_t*>(from.pair_weights);
  call.upstream = static_cast<const acc_t*>(from.upstream);
  call.margin = from.margin;
  call.similar_weight = from.similar_weight;
  call.dissimilar_weight = from.dissimilar_weight;
  call.balance = from.balance != 0;
  call.gradient = static_cast<Gradient>(from.gradient);
  call.reduction = static_cast<Reduction>(from.reduction);
  call.loss = static_cast<acc_t*>(from.loss);
  call.stats = static_cast<double*>(from.stats);
  call.grad = static_cast<out_t*>(from.grad);

  // Exactly as large as it must be, for AddressSanitizer, and full of NaN, for what reads before it
  // writes.
  const int64_t bytes = lay_out_list_workspace(call, nullptr);
  const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(256, bytes), std::free);
  std::memset(workspace.get(), 0xff, bytes);
  lay_out_list_workspace(call, workspace.get());
  run_pair_list_kl_hinge(call, nullptr);
  emulation::check_guards();
}

template <typename scalar_t>
void run(const Call& call) {
  using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  if (call.upstream != nullptr)
    run<scalar_t, acc_t, scalar_t>(call);
  else
    run<scalar_t, acc_t, acc_t>(call);
}

}  // namespace

// Null, or what went wrong; valid until the next call.
extern "C" const char* emulate_pair_list_kl_hinge(const Call* call) {
  static std::string message;
  try {
    emulation::Machine::get().seed = static_cast<unsigned>(call->seed);
    switch (call->element) {
      case 0:
        run<double>(*call);
        break;
      case 1:
        run<float>(*call);
        break;
      case 2:
        run<torch::headeronly::Half>(*call);
        break;
      case 3:
        run<torch::headeronly::BFloat16>(*call);
        break;
      default:
        throw emulation::Error("element: expected 0 to 3");
    }
    return nullptr;
  } catch (const std::exception& error) {
    emulation::guards().clear();
    message = error.what();
    return message.c_str();
  }
}
