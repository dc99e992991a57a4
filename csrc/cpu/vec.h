// Vectors of one instruction set. Included once per set, with
//   PAIRLOSS_ISA           the namespace of this copy of the kernels (baseline, avx2, avx512)
//   PAIRLOSS_VECTOR_BYTES  16, 32 or 64
// The compilers' vector extension gives arithmetic, comparison and selection; what it lacks is
// here.
#pragma once

namespace pairloss::cpu::PAIRLOSS_ISA {

#define PAIRLOSS_INLINE [[gnu::always_inline]] inline

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(PAIRLOSS_VECTOR_BYTES)));
  typedef float InMemory __attribute__((vector_size(PAIRLOSS_VECTOR_BYTES), aligned(4)));
  typedef int32_t I __attribute__((vector_size(PAIRLOSS_VECTOR_BYTES)));
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(PAIRLOSS_VECTOR_BYTES)));
  typedef double InMemory __attribute__((vector_size(PAIRLOSS_VECTOR_BYTES), aligned(8)));
  typedef int64_t I __attribute__((vector_size(PAIRLOSS_VECTOR_BYTES)));
};

template <class T>
using Vec = typename Simd<T>::V;

template <class T>
constexpr int64_t kLanes = PAIRLOSS_VECTOR_BYTES / sizeof(T);

template <class T>
PAIRLOSS_INLINE Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

// Asks for the cache lines of x[0] .. x[count - 1], to be written: from another core, where they
// were written or read before. Processors that do not know the instruction pass over it; the
// baseline of x86 has none but that for reading, after which writing takes as long as before.
template <class T>
PAIRLOSS_INLINE void prefetch_to_write([[maybe_unused]] const T* x,
                                       [[maybe_unused]] int64_t count = 1) {
#if !defined(__x86_64__) || PAIRLOSS_VECTOR_BYTES > 16
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(x + i, 1);
  __builtin_prefetch(x + count - 1, 1);
#endif
}

#if PAIRLOSS_VECTOR_BYTES == 64
// A bit for each of the first `count` lanes, or for all where it is more.
template <class T>
PAIRLOSS_INLINE uint32_t first_lanes(int64_t count) {
  return (1u << (count < kLanes<T> ? count : kLanes<T>)) - 1;
}

// 0 to 15.
PAIRLOSS_INLINE __m512i lane_numbers() {
  return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
#endif

// The first `count` lanes, or all where it is more; `rest` in the others.
template <class T>
PAIRLOSS_INLINE Vec<T> load_first(const T* from, int64_t count, T rest) {
#if PAIRLOSS_VECTOR_BYTES == 64
  const uint32_t lanes = first_lanes<T>(count);
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), lanes, from);
  } else {
    return (Vec<T>)_mm512_mask_loadu_pd(_mm512_set1_pd(rest), lanes, from);
  }
#else
  if (count >= kLanes<T>) return load(from);
  Vec<T> v;
  for (int64_t l = 0; l < kLanes<T>; ++l) v[l] = l < count ? from[l] : rest;
  return v;
#endif
}

template <class T>
PAIRLOSS_INLINE void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

template <class T>
PAIRLOSS_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// The first `count` lanes, or all where it is more.
template <class T>
PAIRLOSS_INLINE void store_first(T* to, int64_t count, Vec<T> v) {
#if PAIRLOSS_VECTOR_BYTES == 64
  const uint32_t lanes = first_lanes<T>(count);
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(to, lanes, (__m512)v);
  } else {
    _mm512_mask_storeu_pd(to, lanes, (__m512d)v);
  }
#else
  if (count >= kLanes<T>) return store(to, v);
  for (int64_t l = 0; l < count; ++l) to[l] = v[l];
#endif
}

// kLanes<double> numbers, in double.
template <class T>
PAIRLOSS_INLINE Vec<double> load_as_double(const T* from) {
  if constexpr (sizeof(T) == 8) {
    return load(from);
  } else {
#if PAIRLOSS_VECTOR_BYTES == 64
    return (Vec<double>)_mm512_cvtps_pd(_mm256_loadu_ps(from));
#elif PAIRLOSS_VECTOR_BYTES == 32
    return (Vec<double>)_mm256_cvtps_pd(_mm_loadu_ps(from));
#else
    Vec<double> v;
    for (int64_t l = 0; l < kLanes<double>; ++l) v[l] = from[l];
    return v;
#endif
  }
}

template <class T>
PAIRLOSS_INLINE void store_rounded(T* to, Vec<double> v) {
  for (int64_t l = 0; l < kLanes<double>; ++l) to[l] = static_cast<T>(v[l]);
}

// Bit l is set where a[l] > b[l].
PAIRLOSS_INLINE uint32_t greater_mask(Vec<float> a, Vec<float> b) {
#if PAIRLOSS_VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif PAIRLOSS_VECTOR_BYTES == 32
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ));
#elif defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmpgt_ps((__m128)a, (__m128)b));
#else
  uint32_t mask = 0;
  for (int64_t l = 0; l < kLanes<float>; ++l) mask |= uint32_t{a[l] > b[l]} << l;
  return mask;
#endif
}

PAIRLOSS_INLINE uint32_t greater_mask(Vec<double> a, Vec<double> b) {
#if PAIRLOSS_VECTOR_BYTES == 64
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ);
#elif PAIRLOSS_VECTOR_BYTES == 32
  return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GT_OQ));
#elif defined(__SSE2__)
  return _mm_movemask_pd(_mm_cmpgt_pd((__m128d)a, (__m128d)b));
#else
  uint32_t mask = 0;
  for (int64_t l = 0; l < kLanes<double>; ++l) mask |= uint32_t{a[l] > b[l]} << l;
  return mask;
#endif
}

// Lanes are added in halves, in double: in the same order in every instruction set's way to do it.
PAIRLOSS_INLINE double sum_lanes(Vec<double> v) {
#if PAIRLOSS_VECTOR_BYTES == 64
  return _mm512_reduce_add_pd((__m512d)v);
#elif PAIRLOSS_VECTOR_BYTES == 32
  const __m128d half =
      _mm_add_pd(_mm256_castpd256_pd128((__m256d)v), _mm256_extractf128_pd((__m256d)v, 1));
  return half[0] + half[1];
#else
  double lane[kLanes<double>];
  for (int64_t l = 0; l < kLanes<double>; ++l) lane[l] = v[l];
  for (int64_t half = kLanes<double> / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
#endif
}

// The upper half of a vector's lanes added to the lower, in double.
PAIRLOSS_INLINE Vec<double> widened_sum(Vec<double> v) { return v; }

PAIRLOSS_INLINE Vec<double> widened_sum(Vec<float> v) {
#if PAIRLOSS_VECTOR_BYTES == 64
  return (Vec<double>)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v)) +
         (Vec<double>)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif PAIRLOSS_VECTOR_BYTES == 32
  return (Vec<double>)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v)) +
         (Vec<double>)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
  Vec<double> sum;
  for (int64_t l = 0; l < kLanes<double>; ++l) {
    sum[l] = static_cast<double>(v[l]) + static_cast<double>(v[l + kLanes<double>]);
  }
  return sum;
#endif
}

template <class T>
PAIRLOSS_INLINE double horizontal_sum(Vec<T> v) {
  return sum_lanes(widened_sum(v));
}

// The horizontal sums of kLanes<double> vectors, to the bit. One by one each is a chain of shuffles
// and additions that wait for each other; here every step adds halves of two vectors.
template <class T>
PAIRLOSS_INLINE Vec<double> horizontal_sums(const Vec<T>* v) {
#if PAIRLOSS_VECTOR_BYTES == 64
  const auto halves = [v](int i, int j) {  // [four of i, four of j]
    const __m512d a = (__m512d)widened_sum(v[i]), b = (__m512d)widened_sum(v[j]);
    return _mm512_shuffle_f64x2(a, b, 0x44) + _mm512_shuffle_f64x2(a, b, 0xee);
  };
  const auto quarters = [](__m512d a, __m512d b) {
    return _mm512_shuffle_f64x2(a, b, 0x88) + _mm512_shuffle_f64x2(a, b, 0xdd);
  };
  const __m512d even = quarters(halves(0, 2), halves(4, 6)),
                odd = quarters(halves(1, 3), halves(5, 7));
  return (Vec<double>)(_mm512_unpacklo_pd(even, odd) + _mm512_unpackhi_pd(even, odd));
#else
  Vec<double> sums;
  for (int64_t l = 0; l < kLanes<double>; ++l) sums[l] = horizontal_sum<T>(v[l]);
  return sums;
#endif
}

// Of lanes that are not NaN.
template <class T>
PAIRLOSS_INLINE T horizontal_max(Vec<T> v) {
#if PAIRLOSS_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_reduce_max_ps((__m512)v);
#endif
  T largest = v[0];
  for (int64_t l = 1; l < kLanes<T>; ++l) largest = v[l] > largest ? v[l] : largest;
  return largest;
}

// The polynomial with these coefficients, the highest first, by Horner's rule.
template <class T, int kCount>
PAIRLOSS_INLINE Vec<T> polynomial(Vec<T> x, const T (&coefficients)[kCount]) {
  Vec<T> y = broadcast(coefficients[0]);
#pragma GCC unroll 8
  for (int i = 1; i < kCount; ++i) y = y * x + coefficients[i];
  return y;
}

// exp(x) for x <= 0, 0 below the smallest normal number; NaN is not kept. float: 1 ulp, by 2^n
// times the degree 6 polynomial of Cephes (S. Moshier, expf) on |r| <= log(2) / 2.
PAIRLOSS_INLINE Vec<float> exp_nonpositive(Vec<float> x) {
  // Unsigned: far below the range, where the result is not used, the exponent wraps around.
  typedef uint32_t U __attribute__((vector_size(PAIRLOSS_VECTOR_BYTES)));
  const Vec<float> magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec<float> shifted = x * 1.44269504088896341f + magic;
  const Vec<float> n = shifted - magic;
  const Vec<float> r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec<float> p = polynomial<float>(r, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                       4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f});
  p = (p * r * r + r) + 1.0f;
  const Vec<float> y = (Vec<float>)((U)p + ((U)shifted << 23));
  return x > -87.0f ? y : Vec<float>{};
}

PAIRLOSS_INLINE Vec<double> exp_nonpositive(Vec<double> x) {
  Vec<double> y;
  for (int64_t l = 0; l < kLanes<double>; ++l) y[l] = x[l] > -708.0 ? __builtin_exp(x[l]) : 0.0;
  return y;
}

// log(x) for finite x >= 1; NaN is kept. 1 ulp, by the polynomial of fdlibm (e_log.c) on
// x / 2^n in [sqrt(1/2), sqrt(2)].
PAIRLOSS_INLINE Vec<double> log_from_one(Vec<double> x) {
  typedef typename Simd<double>::I I;
  constexpr int64_t kRootOfHalf = 0x3fe6a09e667f3bcd;
  const I n = ((I)x - kRootOfHalf) >> 52;
  const Vec<double> f = (Vec<double>)((I)x - (n << 52)) - 1.0;
  const Vec<double> s = f / (f + 2.0), z = s * s, half = f * f * 0.5;
  const Vec<double> r = polynomial<double>(
      z, {1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01,
          2.222219843214978396e-01, 2.857142874366239149e-01, 3.999999999940941908e-01,
          6.666666666666735130e-01});
  const Vec<double> e = __builtin_convertvector(n, Vec<double>);
  const Vec<double> low = s * (half + r * z) + e * 1.90821492927058770002e-10;
  const Vec<double> y = e * 6.93147180369123816490e-01 - ((half - low) - f);
  return x == x ? y : x;
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
