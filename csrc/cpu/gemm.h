// Register tiles of R rows and two vectors. The sum over k runs from 0 to K in one chain per element, whatever R
// is, so a row has the same bits in every tiling.
#pragma once

#include "simd.h"

namespace rtm::RTM_ISA {

constexpr i64 NR = 2 * W;
constexpr int MR = W == 16 ? 14 : 6;
constexpr i64 kChain = 128;

RTM_INLINE i64 row_blocks(i64 D) { return 2 * ceil_div(D, NR); }  // of W, in a whole number of panels

// How the products of one format are summed: `Sum` is the register that holds a row's sums of W columns.
struct Float32 {
  using Sum = V;
  static RTM_INLINE_MEMBER V broadcast(const float* word) { return set1(*word); }
  static RTM_INLINE_MEMBER V words(const float* p) { return load(p); }
  static RTM_INLINE_MEMBER V add(V sum, V a, V b) { return fma(a, b, sum); }
};

template <int R, class F = Float32>
struct Tile {
  typename F::Sum c[R][2];
};

template <int R>
RTM_INLINE void clear(Tile<R>& t) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) t.c[r][0] = t.c[r][1] = set1(0.0f);
}

template <int R, class F>
RTM_INLINE void rank_one(Tile<R, F>& t, const float* a, const float* b) {
  const auto b0 = F::words(b), b1 = F::words(b + W);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const auto s = F::broadcast(a + r * W);
    t.c[r][0] = F::add(t.c[r][0], s, b0);
    t.c[r][1] = F::add(t.c[r][1], s, b1);
  }
}

// t += a b: a in the rows layout with a_block floats from one block of W to the next, b a panel [K][2W].
template <int R, class F>
RTM_INLINE void multiply_chain(Tile<R, F>& t, const float* a, i64 a_block, const float* b, i64 K) {
  i64 k = 0;
  for (; k + W <= K; k += W, a += a_block)
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j, b += NR) rank_one(t, a + j, b);
  for (int j = 0; k < K; ++k, ++j, b += NR) rank_one(t, a + j, b);
}

// total = a b, the sums of kChain products at a time added up: their rounding errors grow with the square root of
// the length of a chain.
template <int R>
RTM_INLINE void multiply(Tile<R>& total, const float* a, i64 a_block, const float* b, i64 K) {
  clear(total);
  multiply_chain(total, a, a_block, b, K < kChain ? K : kChain);
  for (i64 k = kChain; k < K; k += kChain) {
    Tile<R> t;
    clear(t);
    multiply_chain(t, a + k / W * a_block, a_block, b + k * NR, K - k < kChain ? K - k : kChain);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < 2; ++v) total.c[r][v] = total.c[r][v] + t.c[r][v];
  }
}

// out (+)= a b; out in the rows layout, its two blocks out_block floats apart.
template <int R>
void product_tile(const float* a, i64 a_block, const float* b, i64 K, float* out, i64 out_block, bool accumulate) {
  Tile<R> t;
  multiply(t, a, a_block, b, K);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v) {
      float* at = out + v * out_block + r * W;
      store(at, accumulate ? load(at) + t.c[r][v] : t.c[r][v]);
    }
}

// The same for the first W columns of the panel alone.
template <int R>
void half_product_tile(const float* a, i64 a_block, const float* b, i64 K, float* out, i64, bool accumulate) {
  V total[R], c[R];
  for (i64 k0 = 0; k0 < K; k0 += kChain) {
    const i64 end = K < k0 + kChain ? K : k0 + kChain;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) c[r] = set1(0.0f);
    for (i64 k = k0; k < end; ++k) {
      const V column = load(b + k * NR);
      const float* at = a + k / W * a_block + k % W;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) c[r] = fma(set1(at[r * W]), column, c[r]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) total[r] = k0 ? total[r] + c[r] : c[r];
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store(out + r * W, accumulate ? load(out + r * W) + total[r] : total[r]);
}

template <template <int> class Function, int... R>
constexpr auto table(std::integer_sequence<int, R...>) {
  return std::array{Function<R + 1>::call...};
}

template <int R>
struct Product {
  static constexpr auto call = product_tile<R>;
};
constexpr auto product_tiles = table<Product>(std::make_integer_sequence<int, MR>{});
template <int R>
struct HalfProduct {
  static constexpr auto call = half_product_tile<R>;
};
constexpr auto half_product_tiles = table<HalfProduct>(std::make_integer_sequence<int, MR>{});

// out (+)= a w over all rows: a [K / W][rows][W], w panels [N / 2W][K][2W], out [N / W][rows][W]. A last block of
// padding alone is not written.
static void product(const float* a, i64 rows, const float* w, i64 K, i64 N, float* out, bool accumulate) {
  const i64 tiles = ceil_div(rows, MR);
  for (i64 n = 0; n < ceil_div(N, NR); ++n)
    for (i64 i = 0; i < tiles; ++i) {
      const i64 r = part(rows, tiles, i), R = part(rows, tiles, i + 1) - r;
      const auto& tile = N - n * NR > W ? product_tiles[R - 1] : half_product_tiles[R - 1];
      tile(a + r * W, rows * W, w + n * K * NR, K, out + (2 * n * rows + r) * W, rows * W, accumulate);
    }
}

}  // namespace rtm::RTM_ISA
