// The launches of csrc/cuda/pair_kl_hinge_kernels.cuh behind a C interface, for ctypes (see
// emulation.py).
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/pair_kl_hinge_kernels.cuh"

namespace {

using namespace pairloss;
using namespace pairloss::cuda;

// What certificates have found, of the pass of the batch and its last chunk. Where the caller wants
// it; as in emulation.py.
struct Found {
  int *order, *ref_order;  // (rows,), (ref_rows,)
  uint8_t* states;         // (row tiles, column tiles)
  int* open;               // (1 + row tiles x column tiles)
  int* open_columns;       // (groups, 1 + column tiles)
};

// As in emulation.py. A null pointer stands for an argument that is not given.
struct Call {
  int64_t element;  // 0 float64, 1 float32, 2 float16, 3 bfloat16
  int64_t rows, classes, levels, ref_rows;
  const void* logits;
  const int64_t* labels;
  const int8_t* similarity;
  const void* ref_logits;
  const int64_t* ref_labels;
  const void *weights, *ref_weights;
  const double* level_weights;
  int64_t ignore_index;
  double margin, similar_weight, dissimilar_weight;
  int64_t balance, gradient, reduction, precision;
  const void* upstream;  // null: the forward op. Else the backward of reduction none, gradients in
                         // the type of logits
  void* loss;
  double* stats;
  void *grad, *ref_grad;                                                          // null: none
  int64_t tiled, chunk_rows, arithmetic, product_splits, pair_blocks, certified;  // see Choice
  int64_t seed;       // order of threads and blocks
  int64_t* launches;  // how many there were
  uint8_t* active;    // null, or (rows, columns): which pairs have a gradient, see write_active()
  Found* found;       // null: not asked for
};

template <typename T>
void copy(T* to, const T* from, int64_t count) {
  if (to != nullptr) std::memcpy(to, from, count * sizeof(T));
}

// From the workspace of a call that is done.
template <typename scalar_t, typename out_t>
void find(const Evaluation<scalar_t, out_t>& e, const Choice& choice, void* allocation,
          Found& found) {
  Workspace workspace(allocation);
  const Work<accumulator_t<scalar_t>> work(e, choice, workspace);
  const auto& problem = work.pass.problem;
  const auto& chunk = work.pass.chunk;
  copy(found.order, problem.rows.given_row, e.rows);
  copy(found.ref_order, problem.columns.given_row, e.ref_rows);
  const int64_t tiles = int64_t{chunk.tiles.row_tiles} * chunk.tiles.column_tiles;
  copy(reinterpret_cast<TileState*>(found.states), chunk.states, tiles);
  copy(found.open, chunk.open, 1 + chunk.open[0]);
  const int64_t groups = ceil_div(chunk.tiles.row_tiles, group_tiles(problem));
  copy(found.open_columns, chunk.open_columns, groups * (1 + chunk.tiles.column_tiles));
}

template <typename scalar_t, typename out_t>
Evaluation<scalar_t, out_t> evaluation(const Call& call) {
  using acc_t = accumulator_t<scalar_t>;
  Evaluation<scalar_t, out_t> e{};
  e.rows = call.rows;
  e.classes = call.classes;
  e.levels = static_cast<int>(call.levels);
  e.logits = static_cast<const scalar_t*>(call.logits);
  e.labels = call.labels;
  e.similarity = call.similarity;
  e.ref_rows = call.ref_rows;
  e.ref_logits = static_cast<const scalar_t*>(call.ref_logits);
  e.ref_labels = call.ref_labels;
  e.weights = static_cast<const acc_t*>(call.weights);
  e.ref_weights = static_cast<const acc_t*>(call.ref_weights);
  e.level_weights = call.level_weights;
  e.ignore_index = call.ignore_index;
  e.margin = call.margin;
  e.similar_weight = call.similar_weight;
  e.dissimilar_weight = call.dissimilar_weight;
  e.balance = call.balance != 0;
  e.gradient = static_cast<Gradient>(call.gradient);
  e.reduction = static_cast<Reduction>(call.reduction);
  e.precision = static_cast<Precision>(call.precision);
  e.upstream = static_cast<const acc_t*>(call.upstream);
  e.loss = static_cast<acc_t*>(call.loss);
  e.stats = call.stats;
  e.grad = static_cast<out_t*>(call.grad);
  e.ref_grad = static_cast<out_t*>(call.ref_grad);
  return e;
}

// Whether the gradient of D_ij is not 0, in the first level, of a call that was one chunk of tiles.
template <typename acc_t>
void write_active(const Pass<acc_t>& pass, uint8_t* active) {
  const int64_t rows = pass.problem.rows.rows, columns = pass.problem.columns.rows;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const uint64_t word =
          pass.chunk.marks[marks_index(pass.chunk.stride, 1, 0, j / kMicro, i / kMicro)];
      active[i * columns + j] =
          (word >> (i % kMicro * kRowBits + j % kMicro * kPairBits) & 3u) != 0;
    }
  }
}

template <typename scalar_t, typename out_t>
void run(const Call& call) {
  const Evaluation<scalar_t, out_t> e = evaluation<scalar_t, out_t>(call);
  const Choice choice{call.tiled != 0,
                      call.chunk_rows,
                      static_cast<Arithmetic>(call.arithmetic),
                      static_cast<int>(call.product_splits),
                      static_cast<int>(call.pair_blocks),
                      call.certified != 0};
  const int64_t bytes = workspace_bytes(e, choice);
  // Exactly as large as it must be, for AddressSanitizer, and full of NaN, for what reads before it
  // writes.
  const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(256, bytes), std::free);
  std::memset(workspace.get(), 0xff, bytes);
  run_pair_kl_hinge(e, workspace.get(), nullptr, choice);
  emulation::check_guards();
  if (call.found != nullptr) {
    find(e, choice, workspace.get(), *call.found);
    emulation::check_guards();
  }
  if (call.active != nullptr) {
    Workspace same(workspace.get());
    write_active(Work<accumulator_t<scalar_t>>(e, choice, same).pass, call.active);
    emulation::check_guards();
  }
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
    emulation::Machine& machine = emulation::Machine::get();
    machine.seed = static_cast<unsigned>(call->seed);
    machine.launches = 0;
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
    *call->launches = machine.launches;
    return nullptr;
  } catch (const std::exception& error) {
    emulation::guards().clear();
    message = error.what();
    return message.c_str();
  }
}

// What a call of the forward op with a gradient allocates beyond its arguments and results. -1 if
// it takes more or less than that of the allocation.
extern "C" int64_t workspace_bytes_float32(const Call* call) {
  Choice choice;
  choice.certified = call->certified != 0;
  const Evaluation<float, float> e = evaluation<float, float>(*call);
  const int64_t bytes = workspace_bytes(e, choice);
  const std::unique_ptr<void, void (*)(void*)> allocation(std::aligned_alloc(256, bytes),
                                                          std::free);
  Workspace workspace(allocation.get());
  Work<float>(e, choice, workspace);
  emulation::check_guards();
  return workspace.bytes() == bytes ? bytes : -1;
}
