// Masked classes (logits of -inf). KL(P_i || P_j) is infinite where P_i > 0 = P_j. The fast
// arithmetic puts 0 for P and L there; which pairs are infinite is decided here, on sets of
// columns. Only batches whose rows mask different columns need any of it.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

class Supports {
 public:
  Supports(int64_t rows, int64_t k) : words_((k + 63) / 64), rows_(rows) {}

  int64_t size() const { return 2 * rows_ * words_; }
  void place(uint64_t* memory) { positive_ = memory, allowed_ = memory + rows_ * words_; }

  template <class T>
  void set_row(const Problem& problem, const Panels<T>& panels, int64_t row, int64_t position,
               const T* p, T* scratch) {
    uint64_t *positive = positive_ + position * words_, *allowed = allowed_ + position * words_;
    for (int64_t w = 0; w < words_; ++w) positive[w] = allowed[w] = 0;
    const LogitsRow<T> logits = read_logits(problem, row, scratch);
    const T largest = find_normalizer(logits).largest;
    for (int64_t c = 0; c < problem.k; ++c) {
      const uint64_t bit = uint64_t{1} << c % 64;
      if (p[panels.element(position, c)] > 0) positive[c / 64] |= bit;
      // As in make_rows: a finite logit may be too far below the largest.
      if (logits.z[c] - largest > -static_cast<T>(INFINITY)) allowed[c / 64] |= bit;
    }
  }

  bool is_infinite(int64_t i, int64_t j) const {
    return exceeds(positive_ + i * words_, allowed_ + j * words_);
  }

  // Clears the bits of infinite pairs.
  void clear_infinite(Span rows, Span columns, uint32_t* bits) const {
    const int64_t words = round_up(columns.size(), 32) / 32;
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      uint32_t* row = bits + (r - rows.begin) * words;
      for (int64_t w = 0; w < words; ++w) {
        for (uint32_t left = row[w]; left != 0; left &= left - 1) {
          const int bit = __builtin_ctz(left);
          if (is_infinite(r, columns.begin + w * 32 + bit)) row[w] &= ~(uint32_t{1} << bit);
        }
      }
    }
  }

  // Marks those of `rows` whose KL from or to any of `partners` is infinite: two lists of
  // positions. `united` and `common` are scratch of words() each.
  void find_infinite(const int32_t* rows, int64_t row_count, const int32_t* partners,
                     int64_t partner_count, uint64_t* united, uint64_t* common,
                     uint8_t* infinite) const {
    for (int64_t w = 0; w < words_; ++w) {
      united[w] = 0, common[w] = ~uint64_t{0};
      for (int64_t j = 0; j < partner_count; ++j) {
        united[w] |= positive_[partners[j] * words_ + w];
        common[w] &= allowed_[partners[j] * words_ + w];
      }
    }
    for (int64_t i = 0; i < row_count; ++i) {
      const int64_t row = rows[i];
      if (exceeds(positive_ + row * words_, common) || exceeds(united, allowed_ + row * words_)) {
        infinite[row] = 1;
      }
    }
  }

  int64_t words() const { return words_; }

 private:
  // Whether a has an element that b has not.
  bool exceeds(const uint64_t* a, const uint64_t* b) const {
    for (int64_t w = 0; w < words_; ++w) {
      if ((a[w] & ~b[w]) != 0) return true;
    }
    return false;
  }

  int64_t words_, rows_;
  uint64_t *positive_ = nullptr, *allowed_ = nullptr;
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
