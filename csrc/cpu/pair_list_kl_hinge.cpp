// The operators pairloss::pair_list_kl_hinge and pairloss::pair_list_kl_hinge_backward on the CPU.
#include "cpu/pair_list_kl_hinge.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "cpu/capability.h"
#include "cpu/tensors.h"
#include "pair_list_check.h"

namespace {

using namespace pairloss;

cpu::PairListKernel* kernel() {
  switch (cpu::capability()) {
#if defined(__x86_64__)
    case cpu::Capability::amx:  // nothing here is a product of matrices
    case cpu::Capability::avx512:
      return cpu::avx512::pair_list_kernel;
    case cpu::Capability::avx2:
      return cpu::avx2::pair_list_kernel;
#endif
    default:
      return cpu::baseline::pair_list_kernel;
  }
}

cpu::Workers workers_for(const PairListArguments& a) {
  const double work = (12.0 * a.count() + a.rows()) * a.columns();
  return cpu::workers_for(work);
}

// The arguments as the kernel takes them.
struct Prepared {
  cpu::Incidence incidence;
  cpu::PairListProblem problem;

  explicit Prepared(const PairListArguments& a) : incidence(make(a)) {
    const double similar = static_cast<double>(incidence.similar_pairs);
    const double dissimilar = static_cast<double>(incidence.dissimilar_pairs);
    const KindScales scales = kind_scales(static_cast<Reduction>(a.reduction), similar, dissimilar,
                                          a.similar_weight, a.dissimilar_weight, a.balance);
    problem = {a.logits.const_data_ptr(),
               cpu::element_of(a.logits),
               a.rows(),
               a.columns(),
               a.margin,
               a.second_only(),
               &incidence,
               a.pair_weights ? a.pair_weights->const_data_ptr() : nullptr,
               scales.similar,
               scales.dissimilar};
  }
  Prepared(const Prepared&) = delete;

  static cpu::Incidence make(const PairListArguments& a) {
    const cpu::PairList list{a.rows(), a.count(),
                             static_cast<const int64_t*>(a.pairs.const_data_ptr()),
                             static_cast<const bool*>(a.similar.const_data_ptr())};
    const int64_t bad = cpu::find_bad_index(list);
    PAIRLOSS_LIST_CHECK(bad < 0, "pairs: expected rows of logits, 0 <= index < ", a.rows(),
                        ", got ", list.pairs[std::max<int64_t>(bad, 0)], " at [", bad / 2, ", ",
                        bad % 2, "]");
    return cpu::make_incidence(list, a.pair_weights.has_value());
  }
};

PairListResults evaluate(const PairListArguments& a) {
  const Tensor& z = a.logits;
  const int64_t n = a.rows(), k = a.columns();
  const ScalarType dtype = accumulation_type(z);
  const bool per_row = a.per_row(), saves_grad = a.with_grad && !per_row;
  Tensor stats = empty_like_device(z, {kStats, 1}, ScalarType::Double);
  Tensor loss = per_row ? empty_like_device(z, {n}, dtype) : empty_like_device(z, {}, dtype);
  Tensor grad = saves_grad ? empty_like_device(z, {n, k}, dtype) : empty_like_device(z, {0}, dtype);

  const Prepared prepared(a);
  std::vector<cpu::RowSums> rows(n);
  kernel()(prepared.problem, workers_for(a), nullptr, rows.data(),
           saves_grad ? grad.mutable_data_ptr() : nullptr);

  double similar = 0.0, dissimilar = 0.0;
  int64_t active = 0;
  for (int64_t i = 0; i < n; ++i) {
    similar += rows[i].similar;
    dissimilar += rows[i].dissimilar;
    active += rows[i].active;
    if (per_row) cpu::set(loss, i, rows[i].both_ways);
  }
  if (!per_row) cpu::set(loss, 0, similar + dissimilar);
  const double dissimilar_pairs = static_cast<double>(prepared.incidence.dissimilar_pairs);
  const double values[] = {static_cast<double>(prepared.incidence.similar_pairs), dissimilar_pairs,
                           active / std::max(2.0 * dissimilar_pairs, 1.0), similar, dissimilar};
  for (int64_t i = 0; i < kStats; ++i) cpu::set(stats, i, values[i]);
  return {loss, stats, grad};
}

Tensor differentiate(const PairListArguments& a, const Tensor& upstream) {
  const Tensor& z = a.logits;
  Tensor grad = empty_like_device(z, {a.rows(), a.columns()}, accumulation_type(z));
  const Prepared prepared(a);
  std::vector<cpu::RowSums> rows(a.rows());
  kernel()(prepared.problem, workers_for(a), upstream.const_data_ptr(), rows.data(),
           grad.mutable_data_ptr());
  return torch::stable::to(grad, z.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pairloss, CPU, m) {
  m.impl("pair_list_kl_hinge", TORCH_BOX(&pair_list_kl_hinge<&evaluate>));
  m.impl("pair_list_kl_hinge_backward", TORCH_BOX(&pair_list_kl_hinge_backward<&differentiate>));
}
