#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

// Whether the matrix unit makes sums of a type.
#if defined(PAIRLOSS_AMX)
template <class T>
constexpr bool kMultiplies = uses<Idea::matrix_unit> && std::is_same_v<T, float>;
#else
template <class T>
constexpr bool kMultiplies = false;
#endif

// A matrix that is summed over some of its rows. Of every 32 rows, their sums, for tiles that are
// added whole; and the largest magnitude in each column, for the matrix unit. Null: not wanted.
template <class T>
struct Source {
  T *x, *totals, *largest;

  static Panels<T> words(const Panels<T>& panels) { return {panels.rows / 32, panels.k}; }

  PAIRLOSS_INLINE Vec<double> total_of_word(const Panels<T>& panels, int64_t word,
                                            int64_t column) const {
    return load_as_double(totals + words(panels).element(word, column));
  }

  // Of the rows row .. row + 31.
  void set_word(const Panels<T>& panels, int64_t row) const {
    if (totals == nullptr && largest == nullptr) return;
    const Panels<T> of_words = words(panels);
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
      const int64_t width = panels.width(panel), to = of_words.at(panel, row / 32);
      for (int64_t c = 0; c < width; c += kLanes<T>) {
        const T* from = x + panels.at(panel, row) + c;
        if (totals != nullptr) {
          Vec<T> sum{};
          for (int64_t r = 0; r < 32; ++r) sum += load(from + r * width);
          store(totals + to + c, sum);
        }
#if defined(PAIRLOSS_AMX)
        if constexpr (kMultiplies<T>) {
          if (largest != nullptr) store(largest + to + c, largest_of_word(from, width));
        }
#endif
      }
    }
  }
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
