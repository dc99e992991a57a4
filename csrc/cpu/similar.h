// Similar pairs, without looking at pairs: KL is linear in each pair, so a class of n rows needs
// its means only.
//
//   sum_{i != j} KL(P_i || P_j) = n sum_i s_i,   s_i = sum_k (P_ik - mean P_k) (L_ik - mean L_k)
//   the row sums, both directions: n s_i + sum_j s_j
//   sum_j (L_i - L_j) = n (L_i - mean L), and likewise for P, in the gradient
//
// The means are taken in double and subtracted before anything is multiplied: the plain form n sum
// h - sum P . sum L loses every digit where P is nearly uniform.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

template <class T>
struct ClassMeans {
  Panels<T> panels;  // one row per class
  T *l, *p;
  // With row weights u: sum_j u_j (L_j - mean L), the same of P, and sum_j u_j.
  T *weighted_l, *weighted_p, *weight;
};

// One panel of the means of every class of two or more rows. u: one vector per row, or null.
template <class T>
void average_classes(const Classes& classes, const Panels<T>& rows, const T* l, const T* p,
                     const T* u, int64_t panel, const ClassMeans<T>& means) {
  constexpr int64_t kWidth = Panels<T>::kWidth;
  const int64_t width = rows.width(panel);
  for (int64_t c = 0; c < classes.count(); ++c) {
    const int64_t begin = classes.begin[c], end = classes.begin[c + 1];
    if (end - begin < 2) continue;
    double l_sum[kWidth] = {}, p_sum[kWidth] = {};
    for (int64_t i = begin; i < end; ++i) {
      const T *l_i = l + rows.at(panel, i), *p_i = p + rows.at(panel, i);
      for (int64_t k = 0; k < width; ++k) {
        l_sum[k] += l_i[k];
        p_sum[k] += p_i[k];
      }
    }
    const int64_t at = means.panels.at(panel, c);
    for (int64_t k = 0; k < width; ++k) {
      means.l[at + k] = static_cast<T>(l_sum[k] / (end - begin));
      means.p[at + k] = static_cast<T>(p_sum[k] / (end - begin));
    }
    if (u == nullptr) continue;
    double weighted_l[kWidth] = {}, weighted_p[kWidth] = {}, weight = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      const T *l_i = l + rows.at(panel, i), *p_i = p + rows.at(panel, i);
      const double u_i = u[i * kLanes<T>];
      weight += u_i;
      for (int64_t k = 0; k < width; ++k) {
        weighted_l[k] += u_i * (l_i[k] - means.l[at + k]);
        weighted_p[k] += u_i * (p_i[k] - means.p[at + k]);
      }
    }
    for (int64_t k = 0; k < width; ++k) {
      means.weighted_l[at + k] = static_cast<T>(weighted_l[k]);
      means.weighted_p[at + k] = static_cast<T>(weighted_p[k]);
    }
    if (panel == 0) means.weight[c] = static_cast<T>(weight);
  }
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
