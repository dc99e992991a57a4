// The call that nearly every training makes, a batch and its labels to one number, with its
// autograd node in C++: at N = 16 Python's node and the general operator's 18 arguments take four
// times as long as the kernels. Everything else, and every other release of torch, goes through
// pairloss/_ops/pair_kl_hinge.py, which does the same in Python.
//
// C++ autograd is not in the stable ABI. Hence a library of its own, which is compiled for one
// release of torch and loaded by that one alone.
#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace pairloss {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// All arguments but the logits, which alone have a gradient.
struct Arguments {
  const Tensor& labels;
  double margin;
  int64_t gradient, reduction, ignore_index;
  double similar_weight, dissimilar_weight;
  bool balance;
  int64_t precision;
};

struct Evaluation {
  Tensor loss, stats, grad;
};

// The general operator (see csrc/schema.cpp), which has all kernels.
Evaluation evaluate(const Tensor& logits, const Arguments& arguments, bool with_grad) {
  static const c10::OperatorHandle general =
      c10::Dispatcher::singleton().findSchemaOrThrow("pairloss::pair_kl_hinge", "");
  const c10::IValue none;
  torch::jit::Stack stack;
  stack.reserve(general.schema().arguments().size());
  // No similarity, ref_logits, ref_labels, sample_weights, ref_sample_weights and level_weights.
  torch::jit::push(stack, logits, arguments.labels, none, none, none, none, none, none);
  torch::jit::push(stack, arguments.margin, arguments.gradient, arguments.reduction,
                   arguments.ignore_index, arguments.similar_weight, arguments.dissimilar_weight,
                   arguments.balance, arguments.precision);
  torch::jit::push(stack, with_grad, /*with_ref_grad=*/false);
  const at::AutoDispatchBelowAutograd guard;
  general.callBoxed(stack);
  return {std::move(stack[0]).toTensor(), std::move(stack[1]).toTensor(),
          std::move(stack[2]).toTensor()};
}

// The identity of a gradient, connected to what it was computed from: there is no second
// derivative.
struct NoSecondDerivative : torch::autograd::Function<NoSecondDerivative> {
  static Tensor forward(AutogradContext*, const Tensor& grad, const Tensor& /*logits*/) {
    return grad.view_as(grad);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false,
                "pairloss.pair_kl_hinge_loss: the fused kernels have no second and no forward-mode "
                "derivative; use impl=\"reference\", which is differentiable to any order");
  }
};

// loss.backward(): the multiplication would be a fifth of the time at N = 1024, K = 4096. Only
// where it can be told without waiting for a device; a subclass such as FakeTensor has no values.
bool is_one(const Tensor& grad_loss) {
  if (!grad_loss.is_cpu() || grad_loss._is_zerotensor() || at::isTensorSubclassLike(grad_loss))
    return false;
  return grad_loss.scalar_type() == at::kFloat ? *grad_loss.const_data_ptr<float>() == 1.0f
                                               : *grad_loss.const_data_ptr<double>() == 1.0;
}

struct PairKLHinge : torch::autograd::Function<PairKLHinge> {
  static variable_list backward(AutogradContext* context, const variable_list& grad_losses) {
    const Tensor& grad_loss = grad_losses[0];
    if (!grad_loss.defined()) return {Tensor()};
    const variable_list saved = context->get_saved_variables();
    const Tensor& logits = saved[0];
    Tensor grad = saved[1];
    // Half logits keep a float32 gradient until it has been scaled, since a mean over all pairs is
    // below float16's range long before a loss scaler's factor comes in; then autograd casts it.
    if (!is_one(grad_loss)) grad = grad * grad_loss;
    if (at::GradMode::is_enabled()) grad = NoSecondDerivative::apply(grad, logits);  // create_graph
    return {grad};
  }
};

struct PairKLHingeNode final : torch::autograd::CppNode<PairKLHinge> {
  std::string name() const override { return "PairKLHinge"; }  // else demangled at every step
};

// A shared_ptr in older releases.
template <class Node>
auto make_node() {
  using Pointer = decltype(torch::autograd::Edge::function);
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>)
    return std::make_shared<Node>();
  else
    return c10::make_intrusive<Node>();
}

// What PairKLHinge::apply() would do, 3 us faster: one input has a gradient, there is one output,
// and neither is changed in place.
void connect(const Tensor& logits, Tensor& loss, Tensor grad) {
  if (const auto& functorch = at::functorch::functorchTLSAccessor())
    functorch->checkSupportsCppAutogradFunction();
  const auto node = make_node<PairKLHingeNode>();
  node->set_ctx_grad_fn(node);
  node->set_next_edges(torch::autograd::collect_next_edges(logits));
  node->is_variable_input_ = {true};
  node->output_info_.emplace_back(loss);
  node->ctx_.set_materialize_grads(false);
  // Also the logits, so that a second derivative fails.
  node->ctx_.save_for_backward({logits, std::move(grad)});
  torch::autograd::set_history(loss, node);
  node->save_variables_to_ctx();
}

bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

// Undefined tensors, in Python None, for what the general way is for, which also says what is wrong
// with an argument. (Not optional tensors: torch.jit.trace has no outputs of that type.) So are the
// statistics, unless they are asked for.
std::tuple<Tensor, Tensor> pair_kl_hinge_of_labels(const Tensor& logits, const Tensor& labels,
                                                   double margin, int64_t gradient,
                                                   int64_t reduction, int64_t ignore_index,
                                                   double similar_weight, double dissimilar_weight,
                                                   bool balance, int64_t precision,
                                                   bool with_stats) {
  const bool has_levels = labels.dim() == 2 && labels.size(1) > 0;
  const bool taken = logits.dim() == 2 && logits.size(1) > 0 &&
                     is_supported(logits.scalar_type()) && (labels.dim() == 1 || has_levels) &&
                     labels.scalar_type() == at::kLong && labels.size(0) == logits.size(0) &&
                     labels.device() == logits.device() && reduction != 0;
  if (!taken) return {};
  const Arguments arguments{labels,       margin,         gradient,          reduction,
                            ignore_index, similar_weight, dissimilar_weight, balance,
                            precision};
  const bool with_grad = at::GradMode::is_enabled() && logits.requires_grad();
  Evaluation result = evaluate(logits, arguments, with_grad);
  if (with_grad) connect(logits, result.loss, std::move(result.grad));
  return {std::move(result.loss), with_stats ? std::move(result.stats) : Tensor()};
}

}  // namespace
}  // namespace pairloss

TORCH_LIBRARY_FRAGMENT(pairloss, m) {
  // The defaults are those of pairloss.pair_kl_hinge_loss: every argument that is passed from
  // Python takes 0.2 us.
  m.def(
      "pair_kl_hinge_of_labels(Tensor logits, Tensor labels, float margin=2.0, int gradient=0, "
      "int reduction=1, int ignore_index=-100, float similar_weight=1.0, "
      "float dissimilar_weight=1.0, bool balance=False, int precision=0, *, "
      "bool with_stats=False) -> (Tensor loss, Tensor stats)",
      &pairloss::pair_kl_hinge_of_labels);
}
