// The operators pairloss::pair_kl_hinge and pairloss::pair_kl_hinge_backward on the CPU.
#include "cpu/pair_kl_hinge.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/capability.h"

namespace {

using namespace pairloss;

cpu::Workers workers_for(int64_t rows, int64_t k) {
  const double work = 6.0 * rows * rows * k;
  if (work < cpu::kSerialWork) return {};
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t count, void (*body)(void*, int64_t), void* context) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker) body(context, worker);
            });
          }};
}

cpu::Element element_of(const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Double:
      return cpu::Element::float64;
    case ScalarType::Half:
      return cpu::Element::float16;
    case ScalarType::BFloat16:
      return cpu::Element::bfloat16;
    default:
      return cpu::Element::float32;
  }
}

template <class T>
void set(Tensor& x, int64_t index, T value) {
  if (x.scalar_type() == ScalarType::Double) {
    static_cast<double*>(x.mutable_data_ptr())[index] = static_cast<double>(value);
  } else {
    static_cast<float*>(x.mutable_data_ptr())[index] = static_cast<float>(value);
  }
}

bool is_plain(const Arguments& a) {
  return a.labels && a.levels() == 1 && !a.ref_logits && !a.sample_weights && !a.level_weights &&
         a.similar_weight == 1.0 && a.dissimilar_weight == 1.0 && !a.balance;
}

Results evaluate(const Arguments& a) {
  PAIRLOSS_CHECK(is_plain(a), "not yet in the fused kernels");
  const Tensor& z = a.logits;
  const int64_t n = z.size(0), k = z.size(1);
  const ScalarType dtype = accumulation_type(z);
  const bool per_row = a.per_row();
  const bool saves_grad = a.with_grad && !per_row;

  Tensor stats = torch::stable::new_empty(z, {kStats, 1}, ScalarType::Double);
  Tensor loss = per_row ? torch::stable::new_empty(z, {n}, dtype)
                        : torch::stable::new_empty(z, std::initializer_list<int64_t>{}, dtype);
  Tensor grad = saves_grad ? torch::stable::new_empty(z, {n, k}, dtype)
                           : torch::stable::new_empty(z, {0}, dtype);
  Tensor ref_grad = torch::stable::new_empty(z, {0}, dtype);

  const cpu::Classes classes = cpu::sort_by_class(
      static_cast<const int64_t*>(a.labels->const_data_ptr()), n, a.ignore_index);
  const double pairs = static_cast<double>(classes.pairs());
  const double scale = a.reduction == int64_t(Reduction::mean) && pairs > 0 ? 1.0 / pairs : 1.0;
  const cpu::Problem problem{z.const_data_ptr(), element_of(z),   n,       k,
                             a.margin,           a.second_only(), &classes};
  const cpu::Kernels& kernels = cpu::kernels_for(cpu::capability());
  const cpu::Workers workers = workers_for(classes.rows(), k);

  cpu::PairSums sums;
  if (saves_grad) {
    sums = kernels.gradient(problem, workers, scale, nullptr, grad.mutable_data_ptr());
  } else {
    std::vector<double> rows(per_row ? n : 0);
    sums = kernels.value(problem, workers, per_row ? rows.data() : nullptr);
    for (size_t i = 0; i < rows.size(); ++i) set(loss, static_cast<int64_t>(i), rows[i]);
  }

  if (!per_row) set(loss, 0, scale * (sums.similar + sums.dissimilar));
  const double similar_pairs = static_cast<double>(classes.similar_pairs());
  const double dissimilar_pairs = pairs - similar_pairs;
  const double active = dissimilar_pairs > 0 ? sums.active / (2.0 * dissimilar_pairs) : 0.0;
  const double values[] = {similar_pairs, dissimilar_pairs, active, scale * sums.similar,
                           scale * sums.dissimilar};
  for (int64_t i = 0; i < kStats; ++i) set(stats, i, values[i]);
  return {loss, stats, grad, ref_grad};
}

Gradients differentiate(const Arguments& a, const Tensor& upstream) {
  PAIRLOSS_CHECK(is_plain(a), "not yet in the fused kernels");
  const Tensor& z = a.logits;
  const int64_t n = z.size(0), k = z.size(1);
  const ScalarType dtype = accumulation_type(z);
  Tensor grad = torch::stable::new_empty(z, {n, k}, dtype);

  const cpu::Classes classes = cpu::sort_by_class(
      static_cast<const int64_t*>(a.labels->const_data_ptr()), n, a.ignore_index);
  const cpu::Problem problem{z.const_data_ptr(), element_of(z),   n,       k,
                             a.margin,           a.second_only(), &classes};
  cpu::kernels_for(cpu::capability())
      .gradient(problem, workers_for(classes.rows(), k), 1.0, upstream.const_data_ptr(),
                grad.mutable_data_ptr());
  return {torch::stable::to(grad, z.scalar_type()),
          torch::stable::new_empty(z, {0}, z.scalar_type())};
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
