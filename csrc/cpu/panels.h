// How the matrices of a batch lie in memory.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

constexpr int64_t kPanelVectors = 4;
constexpr int64_t kLargestTile = 512;

// Rows, or columns, begin .. end - 1 of the pair matrix.
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

constexpr int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// A matrix cut into panels of up to four vectors of columns: panel-major, [panel][row][column of
// the panel]. One panel of a block of rows fits into the first-level cache, whatever the number of
// columns. The last panel may be narrower. Columns are padded with zeros to whole vectors, rows to
// `rows`.
template <class T>
struct Panels {
  static constexpr int64_t kWidth = kPanelVectors * kLanes<T>;

  int64_t rows, columns;
  int64_t k;  // columns that are not padding

  Panels(int64_t rows, int64_t k) : rows(rows), columns(round_up(k, kLanes<T>)), k(k) {}

  int64_t size() const { return rows * columns; }
  int64_t count() const { return (columns + kWidth - 1) / kWidth; }
  int64_t width(int64_t panel) const {
    const int64_t left = columns - panel * kWidth;
    return left < kWidth ? left : kWidth;
  }
  // The first element of a row in a panel.
  int64_t at(int64_t panel, int64_t row) const {
    return panel * kWidth * rows + row * width(panel);
  }
  // Element (row, column).
  int64_t element(int64_t row, int64_t column) const {
    return at(column / kWidth, row) + column % kWidth;
  }
};

// f(std::integral_constant<int, n>) for the n = 1 .. 4 vectors of a panel.
template <class F>
PAIRLOSS_INLINE void for_vectors(int64_t vectors, F&& f) {
  switch (vectors) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    default:
      return f(std::integral_constant<int, 4>());
  }
}

// One vector of a row, from a multiple of kLanes on; zeros beyond the last.
template <class T>
PAIRLOSS_INLINE Vec<T> vector_at(const Panels<T>& panels, const T* x, int64_t row, int64_t column) {
  if (column >= panels.columns) return Vec<T>{};
  return load(x + panels.element(row, column));
}

// body(row_offset, column) for every vector of one row: where it lies in a Panels matrix, and its
// first column.
template <class T, class Body>
PAIRLOSS_INLINE void for_each_vector(const Panels<T>& panels, int64_t row, Body&& body) {
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int64_t at = panels.at(panel, row);
    for (int64_t c = 0; c < panels.width(panel); c += kLanes<T>) {
      body(at + c, panel * Panels<T>::kWidth + c);
    }
  }
}

// The same of two rows, of matrices with the same columns: body(row_offset, other_row_offset).
template <class T, class Body>
PAIRLOSS_INLINE void for_each_vector(const Panels<T>& panels, int64_t row, const Panels<T>& others,
                                     int64_t other_row, Body&& body) {
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int64_t at = panels.at(panel, row), other_at = others.at(panel, other_row);
    for (int64_t c = 0; c < panels.width(panel); c += kLanes<T>) body(at + c, other_at + c);
  }
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
