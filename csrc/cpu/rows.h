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
PAIRLOSS_INLINE LogitsRow<T> read_logits(const Problem& problem, int64_t row, T* scratch) {
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
PAIRLOSS_INLINE T find_largest_logit(const LogitsRow<T>& z) {
  Vec<T> largest = z.at(0);
  for (int64_t c = kLanes<T>; c < z.k; c += kLanes<T>) {
    const Vec<T> v = z.at(c);
    largest = v > largest ? v : largest;
  }
  return horizontal_max<T>(largest);
}

template <class T>
Normalizer<T> find_normalizer(const LogitsRow<T>& z) {
  const T max = find_largest_logit(z);
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

constexpr int64_t kRowsAtOnce = 32;

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

// P and L - reference of the rows of some positions, at most kRowsAtOnce, and h = sum P (L -
// reference). Where the logit is -inf, P and L are 0, and the row is `masked`. row_of(position):
// the row, or -1 where there is none, whose P and L are 0. known: the normalizers of all rows, or
// null.
template <class T, class RowOf>
RowFlags make_rows(const Problem& problem, Panels<T> panels, Reference<T> reference,
                   const Normalizer<T>* known, Span positions, RowOf&& row_of, T* scratch, T* p,
                   T* l, T* h) {
  // Finite logits may lie so far apart that sums of their differences overflow.
  constexpr T kLeast = sizeof(T) == 4 ? T(-1e30) : T(-1e300);
  // Smaller P are 0: they are subnormal, and slow.
  constexpr T kSmallest = sizeof(T) == 4 ? T(1.17549435e-38) : T(2.2250738585072014e-308);
  typedef typename Simd<T>::I I;

  // Each step of a row waits for a sum over its columns: so all rows take a step before the next. L
  // is the place of z and of z - largest before, P that of its exponential.
  const auto row_at = [&](int64_t r) { return row_of(positions.begin + r); };
  const int64_t count = positions.size();
  T largest[kRowsAtOnce];
  for (int64_t r = 0; r < count; ++r) {
    if (row_at(r) < 0) continue;
    const LogitsRow<T> z = read_logits(problem, row_at(r), scratch);
    for_each_vector(panels, positions.begin + r,
                    [&](int64_t at, int64_t column) { store(l + at, z.at(column)); });
    largest[r] = known != nullptr ? known[row_at(r)].largest : find_largest_logit(z);
  }
  Vec<T> partial[kRowsAtOnce];  // sums over a row's columns, by lanes
  for (Vec<T>& of_row : partial) of_row = Vec<T>{1};
  for (int64_t r = 0; r < count; ++r) {
    if (row_at(r) < 0) continue;
    Vec<T> exponentials{};
    for_each_vector(panels, positions.begin + r, [&](int64_t at, int64_t) {
      const Vec<T> shifted = load(l + at) - largest[r];
      const Vec<T> exponential = exp_nonpositive(shifted);
      exponentials += shifted == shifted ? exponential : shifted;
      store(l + at, shifted);
      store(p + at, exponential);
    });
    partial[r] = exponentials;
  }
  double sum[kRowsAtOnce], inverse[kRowsAtOnce], log_sum[kRowsAtOnce];
  for (int64_t r = 0; r < count; r += kLanes<double>) {
    store(sum + r, horizontal_sums<T>(partial + r));
    for (int64_t i = r; known != nullptr && i < r + kLanes<double> && i < count; ++i) {
      if (row_at(i) >= 0) sum[i] = known[row_at(i)].sum;
    }
    store(inverse + r, 1.0 / load(sum + r));
    store(log_sum + r, log_from_one(load(sum + r)));
  }
  RowFlags flags{false, false};
  const Vec<T> infinite = broadcast(-static_cast<T>(INFINITY));
  I masked{};
  int64_t rows = 0;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t i = positions.begin + r;
    Vec<T> entropy{};
    if (row_at(r) < 0) {
      for_each_vector(panels, i, [&](int64_t at, int64_t) {
        store(p + at, Vec<T>{});
        store(l + at, Vec<T>{});
      });
      partial[r] = entropy;
      continue;
    }
    const T offset = static_cast<T>(log_sum[r] - reference.log_sum);
    const T scale = static_cast<T>(inverse[r]);
    for_each_vector(panels, i, [&](int64_t at, int64_t column) {
      const Vec<T> shifted = load(l + at);
      const I is_masked = shifted == infinite;
      Vec<T> log_p = (shifted - load(reference.shifted + column)) - offset;
      log_p = log_p > kLeast ? log_p : broadcast(kLeast);
      log_p = is_masked ? Vec<T>{} : log_p;
      Vec<T> probability = load(p + at) * scale;
      probability = probability >= kSmallest ? probability : Vec<T>{};
      entropy += probability * log_p;
      store(l + at, log_p);
      store(p + at, probability);
      masked -= is_masked;
    });
    partial[r] = entropy;
    flags.nan |= sum[r] != sum[r];
    ++rows;
  }
  for (int64_t r = 0; r < count; r += kLanes<double>) {
    store(sum + r, horizontal_sums<T>(partial + r));
  }
  for (int64_t r = 0; r < count; ++r) h[positions.begin + r] = static_cast<T>(sum[r]);
  int64_t all_masked = 0;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) all_masked += masked[lane];
  flags.masked = all_masked > rows * (panels.columns - problem.k);  // beside the padding
  return flags;
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
