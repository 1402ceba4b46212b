// Products of bfloat16, summed in float32. The processor adds the two products of a word to the sum in one chain per
// element, so a row has the same bits in every tiling.
#pragma once

#include "gemm.h"

namespace rtm::RTM_ISA {

constexpr i64 kPerWord = 2;
using Words = __m512;

RTM_INLINE __m512bh pairs(Words a) { return (__m512bh)a; }

struct RowSums {
  using Sum = V;
  static RTM_INLINE_MEMBER Words broadcast(const float* word) { return set1(*word); }
  static RTM_INLINE_MEMBER Words words(const float* p) { return load(p); }
  static RTM_INLINE_MEMBER V add(V sum, Words a, Words b) { return _mm512_dpbf16_ps(sum, pairs(a), pairs(b)); }
};
using ColumnSums = RowSums;

RTM_INLINE V start_columns(const Linear&, i64) { return set1(0.0f); }
RTM_INLINE V start_row(const Linear&, i64) { return set1(0.0f); }
RTM_INLINE V scale_columns(const Linear&, i64) { return set1(1.0f); }
RTM_INLINE V scale_row(const Linear&, i64) { return set1(1.0f); }
RTM_INLINE V value(V sum, V, V) { return sum; }

// x [K / W][rows][W] -> words [K / 2W][rows][W]; K a multiple of W. `scale` is not used.
static void convert_rows(const float* x, i64 K, i64 rows, float* words, float*) {
  for (i64 b = 0; b < K / W; ++b)
    for (i64 r = 0; r < rows; ++r) {
      const __m256bh half = _mm512_cvtneps_pbh(load(x + (b * rows + r) * W));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + (b / 2 * rows + r) * W + b % 2 * 8), (__m256i)half);
    }
}

// x [K][2W] -> words [ceil(K / 2)][2W]; rows from K on count as zero.
static void convert_columns(const float* x, i64 K, float* words, float*) {
  for (i64 k = 0; k < K; k += 2)
    for (i64 v = 0; v < NR; v += W) {
      const V low = load(x + k * NR + v), high = k + 1 < K ? load(x + (k + 1) * NR + v) : set1(0.0f);
      const __m512i a = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
      const __m512i b = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
      _mm512_storeu_si512(words + k / 2 * NR + v, _mm512_or_epi32(a, _mm512_slli_epi32(b, 16)));
    }
}

}  // namespace rtm::RTM_ISA
