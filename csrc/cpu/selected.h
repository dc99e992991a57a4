// Sums over the selected partners of every row, and what the gradient makes of them.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

// What is summed: rows of `x` (L, or P), and with sample weights w and row weights u
//
//   w_j x_j and w_j;   w_j u_j x_j and w_j u_j (row weights only)
template <class T>
struct Sources {
  const T *x, *w;            // w: one vector per row, as all weights; null for ones
  const T *weighted_x, *wu;  // null without row weights
};

// For every row, sums over some of its partners, which bits tell.
template <class T>
struct Selected {
  int32_t* count;
  T *sum, *weight;                    // weight: sum of w_j; null for ones
  T *weighted_sum, *weighted_weight;  // null without row weights

  void lay_out(Arena& arena, const Panels<T>& panels, bool has_sample_weights, bool weighted) {
    count = arena.take<int32_t>(panels.rows);
    sum = arena.take<T>(panels.size());
    weight = has_sample_weights ? arena.take<T>(panels.rows * kLanes<T>) : nullptr;
    weighted_sum = weighted ? arena.take<T>(panels.size()) : nullptr;
    weighted_weight = weighted ? arena.take<T>(panels.rows * kLanes<T>) : nullptr;
  }

  // A row without partners has no sums.
  void clear(const Panels<T>& panels, int64_t row, bool sums) const {
    for (T* const x : {sum, weighted_sum}) {
      if (x == nullptr || !sums) continue;
      for_each_vector(panels, row, [x](int64_t at, int64_t) { store(x + at, Vec<T>{}); });
    }
    if (weight != nullptr) store(weight + row * kLanes<T>, Vec<T>{});
    if (weighted_weight != nullptr) store(weighted_weight + row * kLanes<T>, Vec<T>{});
  }

  // bits: destination rows x source rows. Without `sums`, only counts and weights.
  void add(const Panels<T>& panels, Span destination, Span from, const uint32_t* bits,
           const Sources<T>& sources, bool sums, const SelectionScratch<T>& scratch) const {
    if (!sums && weight == nullptr && weighted_weight == nullptr) {
      const int64_t words = round_up(from.size(), 32) / 32;
      for (int64_t d = destination.begin; d < destination.end; ++d, bits += words) {
        count[d] += count_row(bits, words);
      }
      return;
    }
    const Selection<T> selection(bits, round_up(from.size(), 32) / 32, destination.size(),
                                 panels.columns, scratch, count + destination.begin,
                                 [&](int64_t d) { clear(panels, destination.begin + d, sums); });
    const auto add_to = [&](const Panels<T>& of, const T* source, T* to) {
      selection.add(of, source, from.begin, to, destination.begin);
    };
    const Panels<T> one(panels.rows, 1);
    if (sums) add_to(panels, sources.x, sum);
    if (weight != nullptr) add_to(one, sources.w, weight);
    if (weighted_weight == nullptr) return;
    if (sums) add_to(panels, sources.weighted_x, weighted_sum);
    add_to(one, sources.wu, weighted_weight);
  }

  // sum_j w_j over the partners.
  T total_weight(int64_t row) const {
    if (weight == nullptr || count[row] == 0) return static_cast<T>(count[row]);
    return weight[row * kLanes<T>];
  }

  // The differences of one row to its partners.
  template <bool kWeighted>
  struct Row {
    const T *sum, *weighted_sum;
    T weight, u;  // weight: of all pairs; 0 without any, whose sums have never been written

    // sum_j w_j (u + u_j) (x - x_j) of one vector, or without row weights sum_j w_j (x - x_j).
    PAIRLOSS_INLINE Vec<T> difference(Vec<T> x, int64_t at) const {
      if (sum == nullptr) return Vec<T>{};
      if constexpr (kWeighted) {
        return x * weight - (load(sum + at) * u + load(weighted_sum + at));
      } else {
        return x * weight - load(sum + at);
      }
    }
  };

  // Without `sums`, as of a row without partners.
  template <bool kWeighted>
  Row<kWeighted> row(int64_t row, T u, bool sums) const {
    if (count[row] == 0 || !sums) return {nullptr, nullptr, 0, 0};
    T weight = total_weight(row);
    if constexpr (kWeighted) weight = u * weight + weighted_weight[row * kLanes<T>];
    return {sum, weighted_sum, weight, u};
  }
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
