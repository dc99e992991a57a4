// Similar pairs, without looking at pairs: KL is linear in each pair, so a class needs its means
// only. With weights w, S = sum_j w_j and means taken with these weights, over the members j of row
// i's class (of the batch; or of the other side, where pairs are those of the batch with the
// reference set):
//
//   sum_j w_j (D_ij + D_ji) = S s_i + R,   s_i = sum_k (P_ik - mean P_k) (L_ik - mean L_k)
//                                          R   = sum_j w_j s_j, of the members themselves
//   sum_j w_j (L_i - L_j)   = S (L_i - mean L), and likewise for P, in the gradient
//
// The means are taken in double and subtracted before anything is multiplied: the plain form n sum
// h - sum P . sum L loses every digit where P is nearly uniform.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

// Of the classes of one level, on one side.
template <class T>
struct ClassMeans {
  Panels<T> panels;  // one row per class
  int64_t classes;
  const int32_t *begin,
      *position;  // the members of class c: position[begin[c] .. begin[c + 1] - 1]
  T *l = nullptr, *p = nullptr;
  T* weight = nullptr;     // S
  double* rest = nullptr;  // R
  // With row weights u: sum_j w_j u_j (L_j - mean L), the same of P, and sum_j w_j u_j.
  T *weighted_l = nullptr, *weighted_p = nullptr, *weighted_weight = nullptr;

  int64_t size(int64_t c) const { return begin[c + 1] - begin[c]; }

  void lay_out(Arena& arena, bool weighted) {
    l = arena.take<T>(panels.size());
    p = arena.take<T>(panels.size());
    weight = arena.take<T>(classes);
    rest = arena.take<double>(classes);
    weighted_l = arena.take<T>(weighted ? panels.size() : 0);
    weighted_p = arena.take<T>(weighted ? panels.size() : 0);
    weighted_weight = arena.take<T>(weighted ? classes : 0);
  }

  int64_t at(int64_t column, int64_t c) const { return panels.element(c, column); }

  // s_i of the row whose vectors begin at row_at(column).
  Vec<T> spread(Vec<T> p_row, Vec<T> l_row, int64_t column, int64_t c) const {
    const int64_t from = at(column, c);
    return (p_row - load(p + from)) * (l_row - load(l + from));
  }
};

// One panel, of so many vectors, of a class: to = scale sum_j w_j (x_j - origin), in double. w: one
// vector per row, or null for ones. origin: null for 0.
template <int kVectors, class T>
void sum_class(const Panels<T>& rows, const T* x, const T* w, const T* origin, int64_t panel,
               const int32_t* first, const int32_t* last, double scale, T* to) {
  constexpr int64_t width = kVectors * kLanes<T>, kStep = kLanes<double>;
  Vec<double> sum[width / kStep] = {};
  for (const int32_t* i = first; i < last; ++i) {
    const T* const x_i = x + rows.at(panel, *i);
    const double w_i = w != nullptr ? w[*i * kLanes<T>] : 1.0;
#pragma GCC unroll 8
    for (int64_t k = 0; k < width; k += kStep) {
      Vec<double> term = load_as_double(x_i + k);
      if (origin != nullptr) term -= load_as_double(origin + k);
      sum[k / kStep] += term * w_i;
    }
  }
#pragma GCC unroll 8
  for (int64_t k = 0; k < width; k += kStep) store_rounded(to + k, sum[k / kStep] * scale);
}

// One panel of the means of some classes. w and wu: w_j and w_j u_j, one vector per row, or null.
template <class T>
void average_classes(const Panels<T>& rows, const T* l, const T* p, const T* w, const T* wu,
                     int64_t panel, Span classes, const ClassMeans<T>& means) {
  for (int64_t c = classes.begin; c < classes.end; ++c) {
    if (means.size(c) == 0) continue;
    const int32_t *first = means.position + means.begin[c],
                  *last = means.position + means.begin[c + 1];
    const auto total = [&](const T* weights) {
      double sum = 0.0;
      for (const int32_t* i = first; i < last; ++i) sum += weights[*i * kLanes<T>];
      return sum;
    };
    const double weight = w != nullptr ? total(w) : static_cast<double>(last - first);
    const double scale = weight != 0.0 ? 1.0 / weight : 0.0;
    const int64_t at = means.panels.at(panel, c);
    for_vectors(rows.width(panel) / kLanes<T>, [&](auto n) {
      sum_class<n, T>(rows, l, w, nullptr, panel, first, last, scale, means.l + at);
      sum_class<n, T>(rows, p, w, nullptr, panel, first, last, scale, means.p + at);
      if (wu == nullptr) return;
      sum_class<n, T>(rows, l, wu, means.l + at, panel, first, last, 1.0, means.weighted_l + at);
      sum_class<n, T>(rows, p, wu, means.p + at, panel, first, last, 1.0, means.weighted_p + at);
    });
    if (panel > 0) continue;
    means.weight[c] = static_cast<T>(weight);
    if (wu != nullptr) means.weighted_weight[c] = static_cast<T>(total(wu));
  }
}

// R of one class.
template <class T>
double spread_of_class(const Panels<T>& rows, const T* l, const T* p, const T* w,
                       const ClassMeans<T>& means, int64_t c) {
  double rest = 0.0;
  for (int64_t i = means.begin[c]; i < means.begin[c + 1]; ++i) {
    const int64_t row = means.position[i];
    Vec<T> s{};
    for_each_vector(rows, row, [&](int64_t at, int64_t column) {
      s += means.spread(load(p + at), load(l + at), column, c);
    });
    rest += (w != nullptr ? w[row * kLanes<T>] : 1.0) * horizontal_sum<T>(s);
  }
  return rest;
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
