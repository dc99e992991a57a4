// The operators pairloss::pair_kl_hinge and pairloss::pair_kl_hinge_backward on the CPU.
#include "cpu/pair_kl_hinge.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "check.h"
#include "cpu/capability.h"
#include "cpu/similarity.h"
#include "cpu/tensors.h"

namespace {

using namespace pairloss;

// Multiply-adds, if every pair was computed.
double work_of(const Arguments& a) {
  const double partners = a.ref_logits ? 2.0 * static_cast<double>(a.ref_rows()) : a.rows();
  return 6.0 * static_cast<double>(a.rows()) * partners * a.columns();
}

const void* data_of(const std::optional<Tensor>& x) { return x ? x->const_data_ptr() : nullptr; }

// The levels of labels, or the similarity matrix as one, with their scales.
std::vector<cpu::Level> make_levels(const Arguments& a, const cpu::Workers& workers) {
  const int64_t count = a.levels();
  std::vector<cpu::Level> levels;
  levels.reserve(count);
  const double* const weights = static_cast<const double*>(data_of(a.level_weights));
  for (int64_t g = 0; g < count; ++g) {
    if (a.similarity) {
      levels.push_back(cpu::make_level_of_matrix(static_cast<const int8_t*>(data_of(a.similarity)),
                                                 a.rows(), workers));
    } else {
      const auto labels = static_cast<const int64_t*>(data_of(a.labels));
      const auto ref_labels = static_cast<const int64_t*>(data_of(a.ref_labels));
      levels.push_back(
          cpu::make_level(labels + g, a.rows(), ref_labels != nullptr ? ref_labels + g : nullptr,
                          a.ref_rows(), a.ref_logits.has_value(), count, a.ignore_index));
    }
    cpu::Level& level = levels.back();
    const KindScales scales =
        kind_scales(static_cast<Reduction>(a.reduction), level.similar_pairs,
                    level.dissimilar_pairs, a.similar_weight, a.dissimilar_weight, a.balance);
    const double weight = weights != nullptr ? weights[g] : 1.0;
    level.similar_scale = weight * scales.similar;
    level.dissimilar_scale = weight * scales.dissimilar;
  }
  return levels;
}

cpu::Problem make_problem(const Arguments& a, const std::vector<cpu::Level>& levels) {
  cpu::Problem problem{};
  problem.sides[0] = {a.logits.const_data_ptr(), a.rows(), data_of(a.sample_weights), nullptr};
  problem.sides[1] = {data_of(a.ref_logits), a.ref_rows(), data_of(a.ref_sample_weights), nullptr};
  problem.cross = a.ref_logits.has_value();
  problem.element = cpu::element_of(a.logits);
  problem.k = a.columns();
  problem.margin = a.margin;
  problem.second_only = a.second_only();
  problem.levels = levels.data();
  problem.level_count = static_cast<int64_t>(levels.size());
  problem.similarity = static_cast<const int8_t*>(data_of(a.similarity));
  return problem;
}

// Gradients in the accumulation type, of the shape of both logits where they are wanted.
Gradients make_gradients(const Arguments& a, bool batch, bool reference, cpu::Problem& problem) {
  const ScalarType dtype = accumulation_type(a.logits);
  const auto make = [&](bool wanted, int64_t rows, cpu::Side& side) {
    if (!wanted) return empty_like_device(a.logits, {0}, dtype);
    Tensor grad = empty_like_device(a.logits, {rows, a.columns()}, dtype);
    side.grad = grad.mutable_data_ptr();
    return grad;
  };
  Tensor grad = make(batch, a.rows(), problem.sides[0]);
  return {grad, make(reference, a.ref_rows(), problem.sides[1])};
}

Results evaluate(const Arguments& a) {
  const Tensor& z = a.logits;
  const int64_t n = a.rows(), levels = a.levels();
  const ScalarType dtype = accumulation_type(z);
  const bool per_row = a.per_row();

  Tensor stats = empty_like_device(z, {kStats, levels}, ScalarType::Double);
  Tensor loss = per_row ? empty_like_device(z, {n}, dtype) : empty_like_device(z, {}, dtype);
  const double work = work_of(a);
  const cpu::Workers workers = cpu::workers_for(work);
  const std::vector<cpu::Level> of_levels = make_levels(a, workers);
  cpu::Problem problem = make_problem(a, of_levels);
  const bool with_grad = a.with_grad && !per_row, with_ref_grad = a.with_ref_grad && !per_row;
  const auto [grad, ref_grad] = make_gradients(a, with_grad, with_ref_grad, problem);

  const cpu::Kernels& kernels = cpu::kernels_for(cpu::capability_for(work));
  std::vector<cpu::PairSums> sums(levels);
  if (with_grad || with_ref_grad) {
    kernels.gradient(problem, workers, nullptr, sums.data());
  } else {
    std::vector<double> rows(per_row ? n : 0);
    kernels.value(problem, workers, sums.data(), per_row ? rows.data() : nullptr);
    for (size_t i = 0; i < rows.size(); ++i) cpu::set(loss, static_cast<int64_t>(i), rows[i]);
  }

  double total = 0.0;
  for (int64_t g = 0; g < levels; ++g) {
    const cpu::Level& level = of_levels[g];
    const double similar = level.similar_scale * sums[g].similar,
                 dissimilar = level.dissimilar_scale * sums[g].dissimilar;
    total += similar + dissimilar;
    const double directions = 2.0 * level.dissimilar_pairs;
    const double values[] = {level.similar_pairs, level.dissimilar_pairs,
                             directions > 0 ? sums[g].active / directions : 0.0, similar,
                             dissimilar};
    for (int64_t i = 0; i < kStats; ++i) cpu::set(stats, i * levels + g, values[i]);
  }
  if (!per_row) cpu::set(loss, 0, total);
  return {loss, stats, grad, ref_grad};
}

Gradients differentiate(const Arguments& a, const Tensor& upstream) {
  const double work = work_of(a);
  const cpu::Workers workers = cpu::workers_for(work);
  const std::vector<cpu::Level> levels = make_levels(a, workers);
  cpu::Problem problem = make_problem(a, levels);
  const auto [grad, ref_grad] = make_gradients(a, a.with_grad, a.with_ref_grad, problem);
  if (a.with_grad || a.with_ref_grad) {
    std::vector<cpu::PairSums> sums(levels.size());
    cpu::kernels_for(cpu::capability_for(work))
        .gradient(problem, workers, upstream.const_data_ptr(), sums.data());
  }
  return {torch::stable::to(grad, a.logits.scalar_type()),
          torch::stable::to(ref_grad, a.logits.scalar_type())};
}

int64_t cpu_capability() { return static_cast<int64_t>(cpu::capability()); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pairloss, CPU, m) {
  m.impl("pair_kl_hinge", TORCH_BOX(&pair_kl_hinge<&evaluate>));
  m.impl("pair_kl_hinge_backward", TORCH_BOX(&pair_kl_hinge_backward<&differentiate>));
}

STABLE_TORCH_LIBRARY_IMPL(pairloss, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}
