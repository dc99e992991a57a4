// The launches of csrc/cuda/pair_kl_hinge_kernels.cuh behind a C interface, for ctypes (see
// emulation.py).
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/pair_kl_hinge_kernels.cuh"

namespace {

using namespace pairloss;
using namespace pairloss::cuda;

// As in emulation.py.
struct Call {
  int64_t element;  // 0 float64, 1 float32, 2 float16, 3 bfloat16
  int64_t rows, classes;
  const void* logits;
  const int64_t* labels;
  int64_t ignore_index;
  double margin;
  int64_t gradient, reduction;
  const void* upstream;  // null: the forward op. Else the backward of reduction none, grad in the
                         // type of logits
  void* loss;
  double* stats;
  void* grad;          // null: none
  int64_t chunk_rows;  // 0: the default
  int64_t seed;        // order of threads and blocks
};

template <typename scalar_t, typename out_t>
void run(const Call& call) {
  using acc_t = accumulator_t<scalar_t>;
  Arguments<scalar_t, out_t> arguments{};
  arguments.logits = static_cast<const scalar_t*>(call.logits);
  arguments.labels = call.labels;
  arguments.ignore_index = call.ignore_index;
  arguments.margin = call.margin;
  arguments.gradient = static_cast<Gradient>(call.gradient);
  arguments.reduction = static_cast<Reduction>(call.reduction);
  arguments.upstream = static_cast<const acc_t*>(call.upstream);
  arguments.loss = static_cast<acc_t*>(call.loss);
  arguments.stats = call.stats;
  arguments.grad = static_cast<out_t*>(call.grad);

  const int64_t chunk_rows =
      call.chunk_rows > 0 ? call.chunk_rows : default_chunk_rows(call.rows, call.classes);
  const Plan plan = make_plan<acc_t>(call.rows, call.classes, chunk_rows);
  const int64_t bytes = workspace_bytes<acc_t>(plan, arguments.gradient, call.grad != nullptr);
  // Exactly as large as it must be, for AddressSanitizer, and full of NaN, for what reads before it
  // writes.
  const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(256, bytes), std::free);
  std::memset(workspace.get(), 0xff, bytes);
  run_pair_kl_hinge(arguments, plan, workspace.get(), nullptr);
  emulation::check_guards();
}

template <typename scalar_t>
void run(const Call& call) {
  if (call.upstream != nullptr)
    run<scalar_t, scalar_t>(call);
  else
    run<scalar_t, accumulator_t<scalar_t>>(call);
}

}  // namespace

// Null, or what went wrong; valid until the next call.
extern "C" const char* emulate_pair_kl_hinge(const Call* call) {
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

// What a call with the default plan allocates beyond its arguments and results.
extern "C" int64_t workspace_bytes_float32(int64_t rows, int64_t classes, int64_t gradient,
                                           int64_t with_grad) {
  const Plan plan = make_plan<float>(rows, classes, default_chunk_rows(rows, classes));
  return workspace_bytes<float>(plan, static_cast<Gradient>(gradient), with_grad != 0);
}
