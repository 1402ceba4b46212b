// Products of int8: weights with a scale for each output, activations with a scale for each row (or column).
// The processor multiplies unsigned by signed bytes, so activations are stored plus 128, and a product starts at
// `offset` = -128 times the sum of its weights. Integer sums are exact: no order of summing changes a bit.
#pragma once

#include "gemm.h"

namespace rtm::RTM_ISA {

constexpr i64 kPerWord = 4;
using Words = __m512i;
typedef std::int32_t Sums __attribute__((vector_size(64)));  // with the lanes in its type GCC keeps a tile in registers

RTM_INLINE Words load_words(const float* p) { return _mm512_loadu_si512(p); }

struct RowSums {  // activations are the broadcast operand
  using Sum = Sums;
  static RTM_INLINE_MEMBER Sums broadcast(const float* word) {
    std::int32_t bits;
    std::memcpy(&bits, word, sizeof bits);
    return Sums{} + bits;
  }
  static RTM_INLINE_MEMBER Sums words(const float* p) { return (Sums)load_words(p); }
  static RTM_INLINE_MEMBER Sums add(Sums sum, Sums a, Sums b) {
    return (Sums)_mm512_dpbusd_epi32((Words)sum, (Words)a, (Words)b);
  }
};

struct ColumnSums : RowSums {  // weights are the broadcast operand
  static RTM_INLINE_MEMBER Sums add(Sums sum, Sums a, Sums b) { return RowSums::add(sum, b, a); }
};

RTM_INLINE Sums start_columns(const Linear& w, i64 at) { return (Sums)_mm512_loadu_si512(w.offset + at); }
RTM_INLINE Sums start_row(const Linear& w, i64 at) { return Sums{} + w.offset[at]; }
RTM_INLINE V scale_columns(const Linear& w, i64 at) { return load(w.scale + at); }
RTM_INLINE V scale_row(const Linear& w, i64 at) { return set1(w.scale[at]); }
RTM_INLINE V value(Sums sum, V weight_scale, V scale) {
  return _mm512_cvtepi32_ps((Words)sum) * weight_scale * scale;
}

// The larger magnitude, as bits: these order NaN above infinity above every number, so neither is lost.
RTM_INLINE Words larger(Words peak, V x) {
  return _mm512_max_epi32(peak, _mm512_and_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)));
}

constexpr float kTiny = 1e-30f;  // below it a peak counts as this, so that 127 / peak is finite

RTM_INLINE Words quantised(V x, V inverse) { return _mm512_cvtps_epi32(x * inverse); }

// x [K / W][rows][W] -> words [K / 4W][rows][W] and the scale of each row; K a multiple of W.
static void convert_rows(const float* x, i64 K, i64 rows, float* words, float* scale) {
  const Words bias = _mm512_set1_epi32(128);
  for (i64 r = 0; r < rows; ++r) {
    Words top = _mm512_setzero_si512();
    for (i64 b = 0; b < K / W; ++b) top = larger(top, load(x + (b * rows + r) * W));
    const float peak = _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(_mm512_reduce_max_epi32(top))));
    const float used = peak < kTiny ? kTiny : peak;
    scale[r] = used / 127.0f;
    const V inverse = set1(127.0f / used);
    for (i64 b = 0; b < K / W; ++b) {
      const Words q = _mm512_add_epi32(quantised(load(x + (b * rows + r) * W), inverse), bias);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(words + ((b / 4 * rows + r) * W + b % 4 * 4)), _mm512_cvtepi32_epi8(q));
    }
  }
}

// x [K][2W] -> words [ceil(K / 4)][2W] and the scale of each column [2W]; rows from K on count as zero.
static void convert_columns(const float* x, i64 K, float* words, float* scale) {
  const Words byte = _mm512_set1_epi32(255), bias = _mm512_set1_epi32(static_cast<int>(0x80808080u));
  for (i64 v = 0; v < NR; v += W) {
    Words top[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (i64 k = 0; k < K; ++k) top[k % 2] = larger(top[k % 2], load(x + k * NR + v));
    const V peak = _mm512_castsi512_ps(_mm512_max_epi32(top[0], top[1]));
    const V used = _mm512_mask_mov_ps(peak, _mm512_cmp_ps_mask(peak, set1(kTiny), _CMP_LT_OQ), set1(kTiny));
    store(scale + v, used / set1(127.0f));
    const V inverse = set1(127.0f) / used;
    for (i64 k = 0; k < K; k += 4) {
      Words word = _mm512_setzero_si512();
      for (int i = 3; i >= 0; --i) {
        const V row = k + i < K ? load(x + (k + i) * NR + v) : set1(0.0f);
        word = _mm512_or_epi32(_mm512_slli_epi32(word, 8), _mm512_and_epi32(quantised(row, inverse), byte));
      }
      // adding 128 to a byte is flipping its highest bit
      _mm512_storeu_si512(words + k / 4 * NR + v, _mm512_xor_epi32(word, bias));
    }
  }
}

}  // namespace rtm::RTM_ISA
