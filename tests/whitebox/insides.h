// What one instruction set's copy of the kernels has inside, as plain functions: insides_*.cpp fill
// this in, bindings.cpp hands it to Python. T is double for float64 logits, else float.
#pragma once

#include <cstdint>

#include "cpu/pair_kl_hinge.h"

namespace pairloss::cpu {

template <class T>
struct Rows {  // row-major, in order of position
  T *p, *l, *h;
  T* reference;        // (k,), what is subtracted from log P, but for reference_log_sum
  double* log_sum;     // of the reference
  bool *nan, *masked;  // per row
};

template <class T>
struct Means {  // see ClassMeans; the weighted ones only with weights
  T *l, *p, *weight, *weighted_l, *weighted_p, *weighted_weight;
  double* rest;
};

template <class T>
struct InsidesOf {
  int64_t lanes, panel_width;
  // n: any.
  void (*exponential)(const T* x, int64_t n, T* y);
  // Of x (rows, lanes), a multiple of 8 rows: one by one, and several at once.
  void (*horizontal_sums)(const T* x, int64_t rows, double* one_by_one, double* at_once);
  void (*rows)(const Problem&, const Rows<T>&);
  // weights, of samples and of rows: (positions,), or null.
  void (*means)(const Problem&, const T* weights, const T* row_weights, const Means<T>&);
  // bits of all ordered pairs with KL < margin, (n, words of 32), found in tiles of `tile` rows,
  // with certificates or without.
  void (*find_active)(const Problem&, int64_t tile, bool certifies, uint32_t* bits);
  // What is certain of the first tile: (tile,) masks of words that are active, or inactive.
  void (*find_certain)(const Problem&, int64_t tile, uint16_t* active, uint16_t* inactive);
  // Of every tile, (blocks, blocks): 1 where all pairs are known to be active, -1 where none is
  // active, else 0.
  void (*find_tile_states)(const Problem&, int64_t tile, int8_t* states);
  // Whether KL(i || j) is infinite, (n, n); whether any within the class is, (n,); and `bits` of
  // all pairs without the infinite ones.
  void (*supports)(const Problem&, bool* infinite, bool* infinite_in_class, uint32_t* bits);
  // destination (rows, columns) += bits (rows, words of 32) x source (32 words, columns), and
  // counts[d] += bits of row d. Rows whose count is 0 are cleared before the first bit is counted.
  void (*add_selected)(const T* source, const uint32_t* bits, int64_t rows, int64_t words,
                       int64_t columns, T* destination, int32_t* counts);
};

struct Insides {
  InsidesOf<float> of_float;
  InsidesOf<double> of_double;
  void (*half_to_float)(const uint16_t* x, int64_t n, float* y);
  void (*bfloat16_to_float)(const uint16_t* x, int64_t n, float* y);
  void (*transpose_bits)(const uint32_t* bits, int64_t rows, int64_t columns, uint32_t* transposed);
  // bits (n, words of 32), n <= 512, where ids differ and are not -1, in one tile.
  void (*keep_dissimilar)(const int32_t* ids, int64_t n, uint32_t* bits);
  // bits of the negative entries, and of the positive ones, of similarity (n, n), n <= 512.
  void (*split_similarity)(const int8_t* similarity, int64_t n, uint32_t* bits, uint32_t* similar);
  void (*logarithm)(const double* x, int64_t n, double* y);  // of x >= 1
};

// Namespaces of their own, beside those of the library's kernels.
namespace insides_baseline {
extern const Insides insides;
}
namespace insides_avx2 {
extern const Insides insides;
}
namespace insides_avx512 {
extern const Insides insides;
}
namespace insides_amx {
extern const Insides insides;
}

}  // namespace pairloss::cpu
