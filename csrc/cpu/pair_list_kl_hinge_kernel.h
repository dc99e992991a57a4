// The kernel for lists of pairs. Included once per instruction set, like vec.h.
//
// With g_ij = +1 for a similar pair, -1 for a dissimilar one with D_ij < margin, else 0, times the
// pair's weight, and sums over the partners j of row i:
//
//   dLoss/dz_i = P_i * sum_j g_ij (L_i - L_j - D_ij)  +  sum_j g_ji (P_i - P_j)
//
// Every row walks over its own partners, so each divergence is computed twice; in return every sum
// belongs to one row and is taken in one order, whichever thread does it.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {
namespace {

// P and L - reference of every row that has a partner, beside each other: a partner is somewhere
// in memory, and both are read of it.
template <class T>
class ListRows {
 public:
  ListRows(const PairListProblem& problem, const Workers& workers)
      : padded_((problem.k + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        buffer_(static_cast<size_t>(problem.n) * 2 * padded_ * sizeof(T)),
        scratch_(static_cast<size_t>(workers.count + 1) * padded_ * sizeof(T), false) {
    const Incidence& incidence = *problem.incidence;

    Problem source{};  // for read_logits
    source.sides[0].logits = problem.logits;
    source.sides[0].n = problem.n;
    source.element = problem.element;
    source.k = problem.k;

    int64_t first = 0;
    while (first < problem.n && incidence.degree(first) == 0) ++first;
    if (first == problem.n) return;
    Reference<T> reference{scratch(workers.count), 0.0};
    reference.set(source, padded_, first, reference.shifted);
    if (reference.log_sum != reference.log_sum) {  // NaN in this row is no matter of the others
      for (int64_t c = 0; c < padded_; ++c) reference.shifted[c] = 0;
      reference.log_sum = 0.0;
    }

    const int64_t tasks = (problem.n + kBlock - 1) / kBlock;
    for_each_task(workers, tasks, [&](int64_t worker, int64_t task) {
      for (int64_t i = task * kBlock; i < problem.n && i < (task + 1) * kBlock; ++i) {
        if (incidence.degree(i) == 0) continue;
        make(read_logits(source, i, scratch(worker)), reference, p(i), l(i));
      }
    });
  }

  int64_t padded() const { return padded_; }
  T* p(int64_t row) const { return reinterpret_cast<T*>(buffer_.data()) + 2 * row * padded_; }
  T* l(int64_t row) const { return p(row) + padded_; }

  static constexpr int64_t kBlock = 64;  // rows that a thread takes at a time

 private:
  T* scratch(int64_t worker) const {
    return reinterpret_cast<T*>(scratch_.data()) + worker * padded_;
  }

  // L keeps -inf of masked classes and of the padding.
  void make(const LogitsRow<T>& z, const Reference<T>& reference, T* p, T* l) const {
    constexpr T kSmallest = sizeof(T) == 4 ? T(1.17549435e-38) : T(2.2250738585072014e-308);
    const Normalizer<T> normalizer = find_normalizer(z);
    const T offset = static_cast<T>(std::log(normalizer.sum) - reference.log_sum);
    const T scale = static_cast<T>(1.0 / normalizer.sum);  // NaN reaches P and L
    for (int64_t c = 0; c < padded_; c += kLanes<T>) {
      const Vec<T> shifted = z.at(c) - normalizer.largest;
      const Vec<T> probability = exp_nonpositive(shifted) * scale;
      store(p + c, probability < kSmallest ? Vec<T>{} : probability);
      store(l + c, (shifted - load(reference.shifted + c)) - offset);
    }
  }

  int64_t padded_;
  Buffer buffer_, scratch_;
};

template <class T>
struct Divergences {
  T there, back;  // D_ij, D_ji
};

template <class T>
PAIRLOSS_INLINE Divergences<T> divergences(const T* p_i, const T* p_j, int64_t padded) {
  const T *const l_i = p_i + padded, *const l_j = p_j + padded;
  Vec<T> there{}, back{};
  for (int64_t c = 0; c < padded; c += kLanes<T>) {
    const Vec<T> p = load(p_i + c), q = load(p_j + c);
    const Vec<T> ratio = load(l_i + c) - load(l_j + c);
    // P = 0 contributes nothing, also where the ratio is infinite or NaN.
    there += p == T(0) ? Vec<T>{} : p * ratio;
    back -= q == T(0) ? Vec<T>{} : q * ratio;
  }
  return {static_cast<T>(horizontal_sum<T>(there)), static_cast<T>(horizontal_sum<T>(back))};
}

// What one row adds up. Partners are taken in groups, whose sums in T are added to others in
// double: a row may have millions.
template <class T>
class RowGradient {
 public:
  explicit RowGradient(int64_t padded)
      : padded_(padded),
        buffer_(static_cast<size_t>(padded) * (2 * sizeof(T) + sizeof(double))),
        log_(reinterpret_cast<T*>(buffer_.data() + padded * sizeof(double))),
        p_(log_ + padded),
        total_(reinterpret_cast<double*>(buffer_.data())) {}

  void clear() {
    for (int64_t c = 0; c < padded_; ++c) log_[c] = p_[c] = 0, total_[c] = 0;
    weighted_divergence_ = 0.0;
  }

  PAIRLOSS_INLINE void add_first(T g, T divergence, const T* p_i, const T* p_j) {
    weighted_divergence_ += static_cast<double>(g) * divergence;
    add(log_, g, p_i + padded_, p_j + padded_);
  }
  PAIRLOSS_INLINE void add_second(T g, const T* p_i, const T* p_j) { add(p_, g, p_i, p_j); }

  void end_group(const T* p_i) {
    for (int64_t c = 0; c < padded_; ++c) {
      // Where P = 0, the sum may be infinite or NaN.
      const double first = p_i[c] == T(0) ? 0.0 : static_cast<double>(p_i[c]) * log_[c];
      total_[c] += first + p_[c];
      log_[c] = p_[c] = 0;
    }
  }

  // Over the classes a gradient adds up to 0, and what rounding leaves of that sum is taken away by
  // P: where P is nearly one-hot, the largest element is a difference of large numbers.
  void write(const T* p_i, int64_t k, T* grad) {
    take_by_p(p_i, k, weighted_divergence_);
    double rest = 0.0;
    for (int64_t c = 0; c < k; ++c) rest += total_[c];
    take_by_p(p_i, k, rest);
    for (int64_t c = 0; c < k; ++c) grad[c] = static_cast<T>(total_[c]);
  }

 private:
  void take_by_p(const T* p_i, int64_t k, double amount) {
    for (int64_t c = 0; c < k; ++c) total_[c] -= p_i[c] == T(0) ? 0.0 : p_i[c] * amount;
  }
  PAIRLOSS_INLINE void add(T* sum, T g, const T* x_i, const T* x_j) {
    const Vec<T> weight = broadcast(g);
    for (int64_t c = 0; c < padded_; c += kLanes<T>) {
      store(sum + c, load(sum + c) + weight * (load(x_i + c) - load(x_j + c)));
    }
  }

  int64_t padded_;
  Buffer buffer_;
  T *log_, *p_;
  double* total_;
  double weighted_divergence_ = 0.0;
};

template <class T>
class PairListPass {
 public:
  PairListPass(const PairListProblem& problem, const ListRows<T>& rows, const T* row_weights)
      : problem_(problem), rows_(rows), row_weights_(row_weights) {}

  // gradient: null for the value alone.
  RowSums row(int64_t i, RowGradient<T>* gradient) const {
    const Incidence& incidence = *problem_.incidence;
    const T* const p_i = rows_.p(i);
    const T margin = static_cast<T>(problem_.margin);
    RowSums sums;
    const int64_t end = incidence.begin[i + 1];
    for (int64_t at = incidence.begin[i]; at < end;) {
      const int64_t group_end = end - at > kGroup ? at + kGroup : end;
      for (; at < group_end; ++at) {
        const int64_t j = incidence.partner[at] >> 1;
        const bool similar = incidence.partner[at] & 1;
        const T* const p_j = rows_.p(j);
        if (at + kAhead < end) prefetch(incidence.partner[at + kAhead] >> 1);
        double weight = similar ? problem_.similar_scale : problem_.dissimilar_scale;
        if (problem_.pair_weights != nullptr) {
          weight *= static_cast<const T*>(problem_.pair_weights)[incidence.pair[at]];
        }
        const Divergences<T> d = divergences(p_i, p_j, rows_.padded());
        const double there = weight * pair_loss(d.there, similar, margin);
        const double back = weight * pair_loss(d.back, similar, margin);
        (similar ? sums.similar : sums.dissimilar) += there;
        sums.both_ways += there + back;
        const bool there_counts = similar || is_active(d.there, margin);
        const bool back_counts = similar || is_active(d.back, margin);
        sums.active += !similar && there_counts;
        if (gradient == nullptr) continue;
        // One of the two rows' lists has this pair, u_i of one and u_j of the other.
        if (row_weights_ != nullptr) weight *= row_weights_[i] + row_weights_[j];
        const T g = static_cast<T>(similar ? weight : -weight);
        if (there_counts && !problem_.second_only) gradient->add_first(g, d.there, p_i, p_j);
        if (back_counts) gradient->add_second(g, p_i, p_j);
      }
      if (gradient != nullptr) gradient->end_group(p_i);
    }
    return sums;
  }

 private:
  static constexpr int64_t kGroup = 256, kAhead = 4;

  // P and L of a row somewhere in memory: all lines of it, which is up to twice as fast as the
  // first line alone (N = 100,000, K = 34: 87 against 180 ns a partner). Of long rows the
  // beginning: the processor sees where the rest is going.
  PAIRLOSS_INLINE void prefetch(int64_t row) const {
    constexpr int64_t kLine = 64, kLines = 16;
    const char* const from = reinterpret_cast<const char*>(rows_.p(row));
    const int64_t bytes = 2 * rows_.padded() * static_cast<int64_t>(sizeof(T));
    for (int64_t at = 0; at < bytes && at < kLines * kLine; at += kLine) {
      __builtin_prefetch(from + at);
    }
  }

  const PairListProblem& problem_;
  const ListRows<T>& rows_;
  const T* row_weights_;
};

template <class T>
void run_pair_list(const PairListProblem& problem, const Workers& workers, const T* row_weights,
                   RowSums* sums, T* grad) {
  const ListRows<T> rows(problem, workers);
  const PairListPass<T> pass(problem, rows, row_weights);
  constexpr int64_t kBlock = ListRows<T>::kBlock;
  std::vector<std::optional<RowGradient<T>>> gradients(workers.count);
  for_each_task(workers, (problem.n + kBlock - 1) / kBlock, [&](int64_t worker, int64_t task) {
    std::optional<RowGradient<T>>& gradient = gradients[worker];
    if (grad != nullptr && !gradient) gradient.emplace(rows.padded());
    for (int64_t i = task * kBlock; i < problem.n && i < (task + 1) * kBlock; ++i) {
      if (problem.incidence->degree(i) == 0) {
        sums[i] = {};
        for (int64_t c = 0; grad != nullptr && c < problem.k; ++c) grad[i * problem.k + c] = 0;
        continue;
      }
      if (gradient) gradient->clear();
      sums[i] = pass.row(i, gradient ? &*gradient : nullptr);
      if (gradient) gradient->write(rows.p(i), problem.k, grad + i * problem.k);
    }
  });
}

void pair_list(const PairListProblem& problem, const Workers& workers, const void* row_weights,
               RowSums* sums, void* grad) {
  if (problem.element == Element::float64) {
    run_pair_list(problem, workers, static_cast<const double*>(row_weights), sums,
                  static_cast<double*>(grad));
  } else {
    run_pair_list(problem, workers, static_cast<const float*>(row_weights), sums,
                  static_cast<float*>(grad));
  }
}

}  // namespace

PairListKernel* const pair_list_kernel = pair_list;

}  // namespace pairloss::cpu::PAIRLOSS_ISA
