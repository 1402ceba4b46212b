// One vector of W floats for the instruction set named by RTM_ISA and RTM_WIDTH. Every fused multiply-add is
// written out and contraction is off, so an expression has the same bits wherever the compiler puts it.
#pragma once

#include <cstring>

#include "kernels.h"

#define RTM_INLINE static inline __attribute__((always_inline))

namespace rtm::RTM_ISA {

constexpr i64 W = RTM_WIDTH;

#if RTM_WIDTH == 16
using V = __m512;
RTM_INLINE V set1(float a) { return _mm512_set1_ps(a); }
RTM_INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
RTM_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a); }
RTM_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
RTM_INLINE V max(V a, V b) { return _mm512_max_ps(a, b); }  // b where either is NaN
RTM_INLINE V min(V a, V b) { return _mm512_min_ps(a, b); }
RTM_INLINE V sqrt(V a) { return _mm512_sqrt_ps(a); }
RTM_INLINE V shift_exponent(V p, V n) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}
#elif RTM_WIDTH == 8
using V = __m256;
RTM_INLINE V set1(float a) { return _mm256_set1_ps(a); }
RTM_INLINE V load(const float* p) { return _mm256_loadu_ps(p); }
RTM_INLINE void store(float* p, V a) { _mm256_storeu_ps(p, a); }
RTM_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
RTM_INLINE V max(V a, V b) { return _mm256_max_ps(a, b); }  // b where either is NaN
RTM_INLINE V min(V a, V b) { return _mm256_min_ps(a, b); }
RTM_INLINE V sqrt(V a) { return _mm256_sqrt_ps(a); }
RTM_INLINE V shift_exponent(V p, V n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}
#else
typedef float V __attribute__((vector_size(4 * RTM_WIDTH)));
typedef std::int32_t VI __attribute__((vector_size(4 * RTM_WIDTH)));
RTM_INLINE V set1(float a) { return V{} + a; }
RTM_INLINE V load(const float* p) {
  V a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
RTM_INLINE void store(float* p, V a) { std::memcpy(p, &a, sizeof a); }
#if defined(__aarch64__)
RTM_INLINE V fma(V a, V b, V c) { return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
RTM_INLINE V fma(V a, V b, V c) { return a * b + c; }
#endif
RTM_INLINE V max(V a, V b) { return a > b ? a : b; }  // b where either is NaN
RTM_INLINE V min(V a, V b) { return a < b ? a : b; }
RTM_INLINE V sqrt(V a) {
  for (i64 i = 0; i < W; ++i) a[i] = std::sqrt(a[i]);
  return a;
}
RTM_INLINE V shift_exponent(V p, V n) { return (V)((VI)p + ((VI)n << 23)); }
#endif

RTM_INLINE V load_first(const float* p, i64 n) {
  if (n >= W) return load(p);
  float padded[W] = {};
  std::memcpy(padded, p, n * sizeof(float));
  return load(padded);
}

RTM_INLINE void store_first(float* p, V a, i64 n) {
  if (n >= W) return store(p, a);
  float padded[W];
  store(padded, a);
  std::memcpy(p, padded, n * sizeof(float));
}

RTM_INLINE float sum(V a) {
  float lanes[W];
  store(lanes, a);
  for (i64 n = W / 2; n > 0; n /= 2)
    for (i64 i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  return lanes[0];
}

// e^x to about one unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial in r, then 2^n. The
// argument is clamped to where the result is a normal number; NaN passes through.
RTM_INLINE V exp(V x) {
  x = min(set1(88.0f), max(set1(-87.0f), x));
  const V round = set1(12582912.0f);  // 1.5 * 2^23: adding it leaves n in the low bits
  const V biased = fma(x, set1(1.44269504f), round);
  const V n = biased - round;
  const V r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), x));
  V p = fma(set1(1.9875691500e-4f), r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + set1(1.0f);
  return shift_exponent(p, biased);
}

RTM_INLINE V swiglu(V gate, V up) { return gate / (set1(1.0f) + exp(set1(0.0f) - gate)) * up; }

RTM_INLINE float inverse_rms(float sum_of_squares, i64 n, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / static_cast<float>(n) + eps);
}

}  // namespace rtm::RTM_ISA
