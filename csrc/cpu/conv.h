// The channel half with a depthwise convolution on the hidden units of the SwiGLU, in two passes over a sample:
// all hidden units silu(gate h) * up h, then convolution, silu, down projection and norm.
#pragma once

#include "attention.h"

namespace rtm::RTM_ISA {

// silu of N vectors; 1 + e^-x is a normal number.
template <int N>
RTM_INLINE void silu(V (&x)[N]) {
  V e[N];
  RTM_EACH e[i] = set1(0.0f) - x[i];
  exp(e);
  RTM_EACH x[i] = x[i] * inverse(set1(1.0f) + e[i]);
}

// out[R][W] = silu(a gate) * (a up), as `gate_up_tile`.
template <int R>
void hidden_tile(const float* a, i64 a_block, const float* b, i64 K, float* out) {
  Tile<R> t;
  multiply(t, a, a_block, b, K);
  constexpr int N = 4;
#pragma GCC unroll 4
  for (int r = 0; r < R; r += N) {
    V gate[N];
    RTM_EACH gate[i] = t.c[r + i < R ? r + i : R - 1][0];
    silu(gate);
    for (int i = 0; i < N && r + i < R; ++i) store(out + (r + i) * W, gate[i] * t.c[r + i][1]);
  }
}

template <int R>
struct Hidden {
  static constexpr auto call = hidden_tile<R>;
};
constexpr auto hidden_tiles = table<Hidden>(std::make_integer_sequence<int, MR>{});

// act [F / W][L][W], rows from `first` on = silu(gate x) * (up x), x [D / W][rows][W].
static void conv_hidden(const Layer& layer, const float* x, float* act, i64 L, i64 D, i64 first, i64 rows) {
  const SwiGLU& w = layer.channel;
  const i64 tiles = ceil_div(rows, MR);
  for (i64 f = 0; f < w.inner; f += W)
    for (i64 i = 0; i < tiles; ++i) {
      const i64 r = part(rows, tiles, i), R = part(rows, tiles, i + 1) - r;
      hidden_tiles[R - 1](x + r * W, rows * W, w.gate_up.words + f / W * D * NR, D, act + (f / W * L + first + r) * W);
    }
}

// work[rows] = h, the sum of sources; the hidden units of these rows into act.
static void conv_expand(const Layer& layer, const Sources& sources, float* work, float* act, i64 L, i64 D, i64 first,
                        i64 last, float* scratch) {
  const i64 rows = last - first;
  for (i64 at = first * D; at < last * D; at += W) {
    const i64 n = last * D - at;
    store_first(work + at, summed(sources, at, n), n);
  }
  pack_rows(work, D, first, rows, scratch);
  conv_hidden(layer, scratch, act, L, D, first, rows);
}

// work[rows] = h = rms_norm(work + out_proj(mixed)); the hidden units of these rows into act.
static void attention_conv_expand(const Layer& layer, const float* mixed, float* work, float* act, i64 L, i64 D,
                                  i64 first, i64 last, float* scratch) {
  const i64 rows = last - first, size = row_blocks(D) * rows * W;
  float *x = scratch, *a = x + size, *residual = a + size;
  pack_rows(mixed, D, first, rows, a);
  pack_rows(work, D, first, rows, residual);
  linear(layer.attention.out, a, D, rows, x, residual + size);
  norm_rows(x, residual, D, rows, layer.eps);
  unpack_rows(x, D, first, rows, work);
  conv_hidden(layer, x, act, L, D, first, rows);
}

// One output of the convolution: taps [k] or [k][k] of W channels each; act [L][W] of the same channels.
RTM_INLINE V convolve(const Conv& c, const float* act, const float* taps, V bias, i64 L, i64 side, i64 l) {
  if (c.grid && l < c.prefix) return load(act + l * W);
  const i64 half = c.width / 2;
  V total = bias;
  if (!c.grid) {
    for (i64 i = 0; i < c.width; ++i) {
      const i64 at = l + i - half;
      if (at >= 0 && at < L) total = fma(load(taps + i * W), load(act + at * W), total);
    }
    return total;
  }
  const i64 y = (l - c.prefix) / side, x = (l - c.prefix) % side;
  for (i64 i = std::max<i64>(0, half - y); i < std::min(c.width, side + half - y); ++i)
    for (i64 j = std::max<i64>(0, half - x); j < std::min(c.width, side + half - x); ++j)
      total = fma(load(taps + (i * c.width + j) * W), load(act + (l + (i - half) * side + j - half) * W), total);
  return total;
}

// out [rows][W] = silu(conv(act)) of the rows [first, last), four at a time inside a grid under a 3 x 3 convolution.
static void conv_rows(const Conv& c, const float* act, const float* taps, const float* bias, i64 L, i64 first, i64 last,
                      float* out) {
  constexpr int N = 4;
  i64 side = 1;
  while (c.grid && side * side < L - c.prefix) ++side;
  const V b = load(bias);
  const bool fast = c.grid && c.width == 3;
  V w[9];
  for (int t = 0; t < 9 && fast; ++t) w[t] = load(taps + t * W);
  for (i64 l = first; l < last;) {
    const i64 y = (l - c.prefix) / side, x = (l - c.prefix) % side;
    if (fast && l >= c.prefix && y > 0 && y + 1 < side && x > 0) {
      for (i64 left = std::min(side - 1 - x, last - l); left >= N; left -= N, l += N) {
        V v[N];
        RTM_EACH v[i] = b;
#pragma GCC unroll 9
        for (int t = 0; t < 9; ++t) {
          const float* at = act + (l + (t / 3 - 1) * side + t % 3 - 1) * W;
          RTM_EACH v[i] = fma(w[t], load(at + i * W), v[i]);
        }
        silu(v);
        RTM_EACH store(out + (l + i - first) * W, v[i]);
      }
    }
    V rest[N];
    i64 n = 0;
    for (; n < N && l + n < last; ++n) rest[n] = convolve(c, act, taps, b, L, side, l + n);
    if (!n) break;
    for (i64 i = n; i < N; ++i) rest[i] = b;
    silu(rest);
    for (i64 i = 0; i < n; ++i) store(out + (l + i - first) * W, rest[i]);
    l += n;
  }
}

// dst[rows] = rms_norm(h + down(silu(conv(act)))), h = work[rows].
static void conv_reduce(const Layer& layer, const float* act, const float* work, float* dst, i64 L, i64 D, i64 first,
                        i64 last, float* scratch) {
  const i64 rows = last - first, size = row_blocks(D) * rows * W, taps = layer.conv.taps();
  float *x = scratch, *out = x + size, *inner = out + size;
  const SwiGLU& w = layer.channel;
  for (i64 f0 = 0; f0 < w.inner; f0 += kInnerBlock) {
    const i64 width = w.inner - f0 < kInnerBlock ? w.inner - f0 : kInnerBlock;
    for (i64 f = f0; f < f0 + width; f += W)
      conv_rows(layer.conv, act + f * L, layer.conv.weight + f * taps, layer.conv.bias + f, L, first, last,
                inner + (f - f0) * rows);
    product(inner, rows, w.down.words + f0 * row_blocks(D) * W, width, D, out, f0 > 0);
  }
  pack_rows(work, D, first, rows, x);
  norm_rows(out, x, D, rows, layer.eps);
  unpack_rows(out, D, first, rows, dst);
}

}  // namespace rtm::RTM_ISA
