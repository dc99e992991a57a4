// From logits to the rows that the pairs are made of: P = softmax(z), L = log_softmax(z), h = sum P
// L.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

PAIRLOSS_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
  uint32_t bits = sign | (exponent + 112u) << 23 | mantissa << 13;
  if (exponent == 31u) bits = sign | 0x7f800000u | mantissa << 13;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  // Subnormal: mantissa * 2^-24.
  return exponent == 0
             ? (sign != 0 ? -1.0f : 1.0f) * static_cast<float>(mantissa) * 5.9604644775390625e-8f
             : f;
}

PAIRLOSS_INLINE float bfloat16_to_float(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}

// One row of logits, and -inf beyond the last.
template <class T>
struct LogitsRow {
  const T* z;
  int64_t k;

  PAIRLOSS_INLINE Vec<T> at(int64_t column) const {
    return load_first(z + column, k - column, -static_cast<T>(INFINITY));
  }
};

// Row `row` of the batch, then of the reference set: where it is, if it is of T, else in scratch.
template <class T>
LogitsRow<T> read_logits(const Problem& problem, int64_t row, T* scratch) {
  constexpr Element kSame = sizeof(T) == 4 ? Element::float32 : Element::float64;
  const int64_t batch = problem.sides[0].n, k = problem.k;
  const void* const logits = problem.sides[row < batch ? 0 : 1].logits;
  const int64_t at = (row < batch ? row : row - batch) * k;
  if (problem.element == kSame) return {static_cast<const T*>(logits) + at, k};
  for (int64_t c = 0; c < k; ++c) {
    const uint16_t half = static_cast<const uint16_t*>(logits)[at + c];
    scratch[c] =
        problem.element == Element::float16 ? half_to_float(half) : bfloat16_to_float(half);
  }
  return {scratch, k};
}

// What a row's P are made with: exp(z - largest) / sum. The sum is NaN if any z is NaN or no z is
// finite.
template <class T>
struct Normalizer {
  T largest;
  double sum;
};

template <class T>
Normalizer<T> find_normalizer(const LogitsRow<T>& z) {
  Vec<T> largest = z.at(0);
  for (int64_t c = kLanes<T>; c < z.k; c += kLanes<T>) {
    const Vec<T> v = z.at(c);
    largest = v > largest ? v : largest;
  }
  const T max = horizontal_max<T>(largest);
  Vec<T> sum{};
  for (int64_t c = 0; c < z.k; c += kLanes<T>) {
    const Vec<T> shifted = z.at(c) - max;  // +inf - +inf and -inf - -inf are NaN, as they should be
    sum += shifted == shifted ? exp_nonpositive(shifted) : shifted;
  }
  return {max, horizontal_sum<T>(sum)};
}

// What is common to all rows, from the first one.
//
// L enters the loss only through differences between rows, so any vector may be subtracted from all
// rows. The first row of log-probabilities leaves small numbers where all P are alike, which is how
// training starts: their differences then keep their digits. It is bounded from below, since a
// large reference would cost digits instead.
template <class T>
struct Reference {
  T* shifted;  // max(z_0 - max z_0, bound), per column; log P of the first row is this - log_sum
  double log_sum;

  // padded: columns of `shifted`. scratch: a row, which may be `shifted`.
  void set(const Problem& problem, int64_t padded, int64_t row, T* scratch) {
    const LogitsRow<T> z = read_logits(problem, row, scratch);
    const Normalizer<T> normalizer = find_normalizer(z);
    log_sum = std::log(normalizer.sum);
    const T least = static_cast<T>(log_sum - std::log(static_cast<double>(problem.k)) - 2.0);
    for (int64_t c = 0; c < padded; c += kLanes<T>) {
      const Vec<T> of_column = z.at(c) - normalizer.largest;
      store(shifted + c, of_column > least ? of_column : broadcast(least));
    }
  }
};

struct RowFlags {
  bool nan, masked;
};

// The first of the largest logits.
template <class T>
int64_t find_largest(const LogitsRow<T>& z, T largest) {
  for (int64_t c = 0; c < z.k; c += kLanes<T>) {
    const uint32_t smaller = greater_mask(broadcast(largest), z.at(c));
    const uint32_t others = ~smaller & ((uint64_t{1} << kLanes<T>)-1);
    if (others != 0) return c + __builtin_ctz(others) < z.k ? c + __builtin_ctz(others) : z.k - 1;
  }
  return z.k - 1;
}

// See Likeness.
template <class T>
Likeness find_likeness(const LogitsRow<T>& z, const Normalizer<T>& normalizer) {
  return {static_cast<int32_t>(find_largest(z, normalizer.largest)),
          confidence(static_cast<float>(normalizer.sum - 1.0))};
}

// P and L - reference of one row, and h = sum P (L - reference). Where the logit is -inf, both are
// 0, and the row is `masked`. known: the row's normalizer, or null.
template <class T>
RowFlags make_row(const Problem& problem, const Panels<T>& panels, const Reference<T>& reference,
                  const Normalizer<T>* known, int64_t row, int64_t position, T* scratch, T* p, T* l,
                  T* h) {
  // Finite logits may lie so far apart that sums of their differences overflow.
  constexpr T kLeast = sizeof(T) == 4 ? T(-1e30) : T(-1e300);
  // Smaller P are 0: they are subnormal, and slow.
  constexpr T kSmallest = sizeof(T) == 4 ? T(1.17549435e-38) : T(2.2250738585072014e-308);

  const LogitsRow<T> z = read_logits(problem, row, scratch);
  const Normalizer<T> normalizer = known != nullptr ? *known : find_normalizer(z);
  const double log_sum = std::log(normalizer.sum);
  const T offset = static_cast<T>(log_sum - reference.log_sum);
  const T scale = static_cast<T>(1.0 / normalizer.sum);
  const Vec<T> infinite = broadcast(-static_cast<T>(INFINITY));
  Vec<T> entropy{}, masked{};
  for_each_vector(panels, position, [&](int64_t at, int64_t column) {
    const Vec<T> shifted = z.at(column) - normalizer.largest;
    const auto is_masked = shifted == infinite;
    Vec<T> log_p = (shifted - load(reference.shifted + column)) - offset;
    log_p = log_p > kLeast ? log_p : broadcast(kLeast);
    log_p = is_masked ? Vec<T>{} : log_p;
    Vec<T> probability = exp_nonpositive(shifted) * scale;
    probability = probability >= kSmallest ? probability : Vec<T>{};
    entropy += probability * log_p;
    store(l + at, log_p);
    store(p + at, probability);
    masked += is_masked ? broadcast(T(1)) : Vec<T>{};
  });
  h[position] = static_cast<T>(horizontal_sum<T>(entropy));
  const double padding = static_cast<double>(panels.columns - problem.k);
  return {log_sum != log_sum, horizontal_sum<T>(masked) > padding};
}

// For the rows of one block of kColumnBlock positions: packed[column][position], the order in which
// the tile kernel reads its columns.
template <class T>
void pack_columns(const Panels<T>& panels, const T* l, int64_t position, int64_t block, T* packed) {
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int64_t width = panels.width(panel);
    const T* from = l + panels.at(panel, position);
    T* to = packed + (position * panels.columns + panel * Panels<T>::kWidth * block);
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t r = 0; r < block; ++r) to[c * block + r] = from[r * width + c];
    }
  }
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
