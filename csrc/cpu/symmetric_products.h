// Products of symmetric layers: R rows x NV vectors in registers.
#pragma once

#include <type_traits>

#include "simd.h"
#include "symmetric_layers.h"

namespace rtm::RTM_ISA {

// c[R, NV] = init + sum over segments of a[R, k] b[k, NV]; a column of vectors of b holds K of them.
template <int R, int NV>
RTM_INLINE void symmetric_tile(const float* a, i64 lda, const Segments& s, const float* b, i64 K, const float* init,
                               i64 init_ld, float* c, i64 ldc) {
  V t[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) t[r][v] = init ? load(init + r * init_ld + v * W) : set1(0.0f);
  for (int i = 0; i < s.count; ++i) {
    const float* from = a + s.first[i];
#pragma GCC unroll 4
    for (i64 k = 0; k < s.size[i]; ++k, b += W) {
      V w[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) w[v] = load(b + v * K * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const V x = set1(from[r * lda + k]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) t[r][v] = fma(x, w[v], t[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c + r * ldc + v * W, t[r][v]);
}

// Rows of an operand or a result: `tiles` of R rows each, `tile_ld` floats apart, and the rows of a tile `ld` apart.
struct Rows {
  const float* at;
  i64 ld, tile_ld;
};

template <int R, int NV>
static void product_column(i64 tiles, const Rows& a, const Segments& s, const float* b, i64 K, const Rows& init,
                           float* c, i64 ldc, i64 c_tile) {
  for (i64 t = 0; t < tiles; ++t)
    symmetric_tile<R, NV>(a.at + t * a.tile_ld, a.ld, s, b, K, init.at ? init.at + t * init.tile_ld : nullptr, init.ld,
                          c + t * c_tile, ldc);
}

// f(n, first) for the vectors [0, count) in runs of n = 3, and 2 or 1 at the end, 4 being twice 2.
template <class F>
static void for_vectors(i64 count, const F& f) {
  for (i64 v = 0; v < count;) {
    const i64 left = count - v, n = left == 4 || left == 2 ? 2 : left >= 3 ? 3 : 1;
    if (n == 3) f(std::integral_constant<int, 3>(), v);
    else if (n == 2) f(std::integral_constant<int, 2>(), v);
    else f(std::integral_constant<int, 1>(), v);
    v += n;
  }
}

// c = init + a b over all tiles and the whole width of b.
template <int R>
static void symmetric_product(i64 tiles, const Rows& a, const Segments& s, const Panels& b, const Rows& init, float* c,
                              i64 ldc, i64 c_tile) {
  for_vectors(b.vectors, [&](auto n, i64 v) {
    const Rows from{init.at ? init.at + v * W : nullptr, init.ld, init.tile_ld};
    product_column<R, decltype(n)::value>(tiles, a, s, b.at + v * b.K * W, b.K, from, c + v * W, ldc, c_tile);
  });
}

// out[k, :] += sum over i < M of a[i, k] b[i, :] for RK columns k of a and NV vectors of b.
template <int RK, int NV>
RTM_INLINE void outer_tile(i64 M, const float* a, i64 lda, const float* b, i64 ldb, float* out, i64 ldo) {
  V t[RK][NV];
#pragma GCC unroll 16
  for (int r = 0; r < RK; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) t[r][v] = load(out + r * ldo + v * W);
#pragma GCC unroll 2
  for (i64 i = 0; i < M; ++i) {
    V y[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) y[v] = load(b + i * ldb + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < RK; ++r) {
      const V x = set1(a[i * lda + r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) t[r][v] = fma(x, y[v], t[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < RK; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(out + r * ldo + v * W, t[r][v]);
}

constexpr int RK = W == 16 ? 8 : 4;

template <int NV>
static void outer_columns(i64 M, const float* a, i64 lda, i64 K, const float* b, i64 ldb, float* out, i64 ldo) {
  i64 k = 0;
  for (; k + RK <= K; k += RK) outer_tile<RK, NV>(M, a + k, lda, b, ldb, out + k * ldo, ldo);
  for (; k < K; ++k) outer_tile<1, NV>(M, a + k, lda, b, ldb, out + k * ldo, ldo);
}

// out[K, N] += a^T b with a [M, K] and b [M, N], N whole vectors.
static void outer_product(i64 M, const float* a, i64 lda, i64 K, const float* b, i64 ldb, i64 N, float* out, i64 ldo) {
  for_vectors(N / W, [&](auto n, i64 v) {
    outer_columns<decltype(n)::value>(M, a, lda, K, b + v * W, ldb, out + v * W, ldo);
  });
}

}  // namespace rtm::RTM_ISA
