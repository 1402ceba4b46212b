// One vector of W floats for the instruction set named by RTM_ISA and RTM_WIDTH. Every fused multiply-add is
// written out and contraction is off, so an expression has the same bits wherever the compiler puts it.
#pragma once

#include "kernels.h"

#define RTM_INLINE_MEMBER inline __attribute__((always_inline))
#define RTM_INLINE static RTM_INLINE_MEMBER

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
// 1 / a for normal a, to about one unit in the last place
RTM_INLINE V inverse(V a) {
  const V r = _mm512_rcp14_ps(a);
  return _mm512_fnmadd_ps(_mm512_fmsub_ps(a, r, set1(1.0f)), r, r);
}
RTM_INLINE V shift_exponent(V p, V n) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}
// a where index < limit, else other
RTM_INLINE V keep_below(V a, V index, float limit, float other) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(index, set1(limit), _CMP_LT_OQ), set1(other), a);
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
RTM_INLINE V inverse(V a) { return set1(1.0f) / a; }
RTM_INLINE V shift_exponent(V p, V n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}
RTM_INLINE V keep_below(V a, V index, float limit, float other) {
  return _mm256_blendv_ps(set1(other), a, _mm256_cmp_ps(index, set1(limit), _CMP_LT_OQ));
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
RTM_INLINE V inverse(V a) { return set1(1.0f) / a; }
RTM_INLINE V shift_exponent(V p, V n) { return (V)((VI)p + ((VI)n << 23)); }
RTM_INLINE V keep_below(V a, V index, float limit, float other) { return index < set1(limit) ? a : set1(other); }
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
#if RTM_WIDTH == 16  // the same pairs in registers
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
#else
  float lanes[W];
  store(lanes, a);
  for (i64 n = W / 2; n > 0; n /= 2)
    for (i64 i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  return lanes[0];
#endif
}

RTM_INLINE float largest(V a) {
  float lanes[W];
  store(lanes, a);
  float top = lanes[0];
  for (i64 i = 1; i < W; ++i) top = lanes[i] > top ? lanes[i] : top;
  return top;
}

// e^x of N vectors, to about one unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial in r, then
// 2^n. The argument is clamped to where the result is a normal number; NaN passes through. Each line is done for all
// N before the next one, because one chain of these instructions is mostly waiting.
template <int N>
RTM_INLINE void exp(V (&x)[N]) {
#define RTM_EACH _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i)
  const V round = set1(12582912.0f);  // 1.5 * 2^23: adding it leaves n in the low bits
  V n[N], p[N];
  RTM_EACH x[i] = min(set1(88.0f), max(set1(-87.0f), x[i]));
  RTM_EACH n[i] = fma(x[i], set1(1.44269504f), round);
  RTM_EACH x[i] = fma(n[i] - round, set1(-0.693359375f), x[i]);
  RTM_EACH x[i] = fma(n[i] - round, set1(2.12194440e-4f), x[i]);
  RTM_EACH p[i] = fma(set1(1.9875691500e-4f), x[i], set1(1.3981999507e-3f));
  RTM_EACH p[i] = fma(p[i], x[i], set1(8.3334519073e-3f));
  RTM_EACH p[i] = fma(p[i], x[i], set1(4.1665795894e-2f));
  RTM_EACH p[i] = fma(p[i], x[i], set1(1.6666665459e-1f));
  RTM_EACH p[i] = fma(p[i], x[i], set1(5.0000001201e-1f));
  RTM_EACH p[i] = fma(p[i], x[i] * x[i], x[i]) + set1(1.0f);
  RTM_EACH x[i] = shift_exponent(p[i], n[i]);
}

// gate = silu(gate) * up for N vectors.
template <int N>
RTM_INLINE void swiglu(V (&gate)[N], const V (&up)[N]) {
  V e[N];
  RTM_EACH e[i] = set1(0.0f) - gate[i];
  exp(e);
  RTM_EACH gate[i] = gate[i] / (set1(1.0f) + e[i]) * up[i];
}

RTM_INLINE float inverse_rms(float sum_of_squares, i64 n, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / static_cast<float>(n) + eps);
}

}  // namespace rtm::RTM_ISA
