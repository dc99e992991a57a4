// Sums over the selected partners of every row, and what the gradient makes of them.
//
// Which partners, bits tell; but where all pairs of a tile are active, they are of one of two
// kinds. With no similar pair among them every row of the tile has the same sum, which is kept once
// for the block of rows: O(K) instead of O(rows K). Else the sum is one for each class.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

// What is summed: rows of L, or P, and with sample weights w and row weights u
//
//   w_j x_j and w_j;   w_j u_j x_j and w_j u_j (row weights only)
template <class T>
struct Sources {
  Source<T> x, w;            // w: one vector per row, as all weights; null for ones
  Source<T> weighted_x, wu;  // null without row weights
};

// For every row, sums over some of its partners, which bits tell; and what all rows of a block have
// in common: sums over blocks of partners.
template <class T>
struct Selected {
  struct Sum {
    T* of_rows;
    double* of_blocks;

    void lay_out(Arena& arena, const Panels<T>& panels, int64_t blocks) {
      of_rows = arena.take<T>(panels.size());
      of_blocks = arena.take<double>(blocks * panels.columns);
    }
  };

  int32_t* count;
  int64_t* block_count;               // null: no block is added whole
  Sum sum, weight;                    // weight: sum of w_j; null for ones
  Sum weighted_sum, weighted_weight;  // null without row weights

  // blocks: 0 if none is added whole.
  void lay_out(Arena& arena, const Panels<T>& panels, int64_t blocks, bool has_sample_weights,
               bool weighted) {
    const Panels<T> one(panels.rows, 1);
    count = arena.take<int32_t>(panels.rows);
    block_count = blocks > 0 ? arena.take<int64_t>(blocks) : nullptr;
    sum.lay_out(arena, panels, blocks);
    if (has_sample_weights) weight.lay_out(arena, one, blocks);
    if (!weighted) return;
    weighted_sum.lay_out(arena, panels, blocks);
    weighted_weight.lay_out(arena, one, blocks);
  }

  void clear_counts(int64_t rows, int64_t blocks) const {
    __builtin_memset(count, 0, rows * sizeof(int32_t));
    if (block_count != nullptr) __builtin_memset(block_count, 0, blocks * sizeof(int64_t));
  }

  // A row without partners has no sums.
  void clear(const Panels<T>& panels, int64_t row, bool sums) const {
    for (T* const x : {sum.of_rows, weighted_sum.of_rows}) {
      if (x == nullptr || !sums) continue;
      for_each_vector(panels, row, [x](int64_t at, int64_t) { store(x + at, Vec<T>{}); });
    }
    for (T* const x : {weight.of_rows, weighted_weight.of_rows}) {
      if (x != nullptr) store(x + row * kLanes<T>, Vec<T>{});
    }
  }

  // bits: destination rows x source rows. Without `sums`, only counts and weights.
  void add(const Panels<T>& panels, Span destination, Span from, const uint32_t* bits,
           const Sources<T>& sources, bool sums, const SelectionScratch<T>& scratch) const {
    if (!sums && weight.of_rows == nullptr && weighted_weight.of_rows == nullptr) {
      const int64_t words = round_up(from.size(), 32) / 32;
      for (int64_t d = destination.begin; d < destination.end; ++d, bits += words) {
        count[d] += count_row(bits, words);
      }
      return;
    }
    const Selection<T> selection(bits, round_up(from.size(), 32) / 32, destination.size(),
                                 panels.columns, scratch, count + destination.begin,
                                 [&](int64_t d) { clear(panels, destination.begin + d, sums); });
    for_each_sum(panels, sources, sums,
                 [&](const Panels<T>& of, const Source<T>& source, const Sum& to) {
                   selection.add(of, source, from.begin, to.of_rows, destination.begin);
                 });
  }

  // The rows `from`, which begin with a word, for all rows of a block.
  void add_to_block(const Panels<T>& panels, int64_t block, Span from, const Sources<T>& sources,
                    bool sums) const {
    const bool is_first = block_count[block] == 0;
    block_count[block] += from.size();
    for_each_sum(panels, sources, sums,
                 [&](const Panels<T>& of, const Source<T>& source, const Sum& to) {
                   for (int64_t c = 0; c < of.columns; c += kLanes<double>) {
                     double* const total = to.of_blocks + block * of.columns + c;
                     Vec<double> added = is_first ? Vec<double>{} : load(total);
                     for (int64_t w = from.begin / 32; w * 32 < from.end; ++w) {
                       added += source.total_of_word(of, w, c);
                     }
                     store(total, added);
                   }
                 });
  }

  // For each of the rows `to`, those of `from` that are not of its class.
  void add_other_classes(const Panels<T>& panels, Span to, Span from, const int32_t* id,
                         const Sources<T>& sources, bool sums) const {
    for (int64_t end, first = to.begin; first < to.end; first = end) {
      end = first + 1;
      while (end < to.end && id[end] == id[first]) ++end;
      add_other_classes(panels, {first, end}, from, id, id[first], sources, sums);
    }
  }

  // Gives rows of a block what they have in common. After all that is added.
  void add_common(const Panels<T>& panels, int64_t block, Span rows, bool sums) const {
    if (block_count == nullptr || block_count[block] == 0) return;
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      if (count[i] == 0) clear(panels, i, sums);
      count[i] += static_cast<int32_t>(block_count[block]);
      for_each_sum(panels, {}, sums, [&](const Panels<T>& of, const Source<T>&, const Sum& to) {
        for_each_vector(of, i, [&](int64_t at, int64_t column) {
          for (int64_t c = 0; c < kLanes<T>; c += kLanes<double>) {
            T* const x = to.of_rows + at + c;
            store_rounded(x,
                          load_as_double(x) + load(to.of_blocks + block * of.columns + column + c));
          }
        });
      });
    }
  }

  // sum_j w_j over the partners.
  T total_weight(int64_t row) const {
    if (weight.of_rows == nullptr || count[row] == 0) return static_cast<T>(count[row]);
    return weight.of_rows[row * kLanes<T>];
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
    if constexpr (kWeighted) weight = u * weight + weighted_weight.of_rows[row * kLanes<T>];
    return {sum.of_rows, weighted_sum.of_rows, weight, u};
  }

 private:
  // For rows of one class.
  void add_other_classes(const Panels<T>& panels, Span to, Span from, const int32_t* id,
                         int32_t of_rows, const Sources<T>& sources, bool sums) const {
    constexpr int64_t kWords = kLargestTile / 32;
    uint32_t others[kWords];  // of every word of `from`
    const int64_t first_word = from.begin / 32, words = (from.size() + 31) / 32;
    int32_t partners = 0;
    for (int64_t w = 0; w < words; ++w) {
      const int64_t left = from.size() - w * 32;
      const uint32_t rows = left < 32 ? (uint32_t{1} << left) - 1 : ~uint32_t{0};
      others[w] = rows & ~equal_mask(id + from.begin + w * 32, of_rows);
      partners += __builtin_popcount(others[w]);
    }
    if (partners == 0) return;
    for (int64_t i = to.begin; i < to.end; ++i) {
      if (count[i] == 0) clear(panels, i, sums);
      count[i] += partners;
    }
    for_each_sum(panels, sources, sums,
                 [&](const Panels<T>& of, const Source<T>& source, const Sum& sum) {
                   for (int64_t c = 0; c < of.columns; c += kLanes<double>) {
                     Vec<double> added{};
                     for (int64_t w = 0; w < words; ++w) {
                       if (others[w] == ~uint32_t{0}) {
                         added += source.total_of_word(of, first_word + w, c);
                         continue;
                       }
                       for (uint32_t left = others[w]; left != 0; left &= left - 1) {
                         const int64_t row = (first_word + w) * 32 + __builtin_ctz(left);
                         added += load_as_double(source.x + of.element(row, c));
                       }
                     }
                     const int64_t width = of.width(c / Panels<T>::kWidth);
                     T* x = sum.of_rows + of.element(to.begin, c);
                     for (int64_t i = to.begin; i < to.end; ++i, x += width) {
                       store_rounded(x, load_as_double(x) + added);
                     }
                   }
                 });
  }

  // body(panels, source, sum) of all sums that there are; without `sums`, of the weights alone.
  template <class Body>
  void for_each_sum(const Panels<T>& panels, const Sources<T>& sources, bool sums,
                    Body&& body) const {
    const Panels<T> one(panels.rows, 1);
    if (sums) body(panels, sources.x, sum);
    if (weight.of_rows != nullptr) body(one, sources.w, weight);
    if (weighted_weight.of_rows == nullptr) return;
    if (sums) body(panels, sources.weighted_x, weighted_sum);
    body(one, sources.wu, weighted_weight);
  }
};

}  // namespace pairloss::cpu::PAIRLOSS_ISA
