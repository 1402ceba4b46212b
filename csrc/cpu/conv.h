// The channel half with a depthwise convolution on the hidden units of the SwiGLU, in two passes over a sample:
// all hidden units silu(gate h) * up h, then convolution, silu, down projection and norm.
#pragma once

#include "attention.h"

namespace rtm::RTM_ISA {

// silu of N vectors, to about 1e-7: x / (1 + 2^t), t = -x / ln 2 = n + r, |r| <= 1/2, a polynomial in r, then 2^n.
template <int N>
RTM_INLINE void silu(V (&x)[N]) {
  const V round = set1(12582912.0f);  // 1.5 * 2^23: adding it leaves n in the low bits
  V n[N], r[N], p[N];
  RTM_EACH r[i] = min(set1(126.0f), max(set1(-126.0f), x[i] * set1(-1.44269504f)));
  RTM_EACH n[i] = r[i] + round;
  RTM_EACH r[i] = r[i] - (n[i] - round);
  RTM_EACH p[i] = fma(set1(1.3264727254e-3f), r[i], set1(9.6715126986e-3f));
  RTM_EACH p[i] = fma(p[i], r[i], set1(5.5507337437e-2f));
  RTM_EACH p[i] = fma(p[i], r[i], set1(2.4022242084e-1f));
  RTM_EACH p[i] = fma(p[i], r[i], set1(6.9314697760e-1f));
  RTM_EACH p[i] = shift_exponent(fma(p[i], r[i], set1(1.0f)), n[i]);
  RTM_EACH x[i] = x[i] * inverse(set1(1.0f) + p[i]);
}

// out[place[i]] = silu(gate) * up for N rows of pairs {gate, up}.
template <int N>
RTM_INLINE void store_hidden(const V (*pairs)[2], const i64* place, float* out) {
  V gate[N];
  RTM_EACH gate[i] = pairs[i][0];
  silu(gate);
  RTM_EACH store(out + place[i], gate[i] * pairs[i][1]);
}

// out[place[r]] = silu(a gate) * (a up) for R rows, as `gate_up_tile`.
template <int R>
void hidden_tile(const float* a, i64 a_block, const float* b, i64 K, const i64* place, float* out) {
  Tile<R> t;
  multiply(t, a, a_block, b, K);
  constexpr int parts = (R + 4) / 5, N = R / parts, larger = R % parts * (N + 1);
#pragma GCC unroll 3
  for (int r = 0; r < larger; r += N + 1) store_hidden<N + 1>(t.c + r, place + r, out);
#pragma GCC unroll 3
  for (int r = larger; r < R; r += N) store_hidden<N>(t.c + r, place + r, out);
}

template <int R>
struct Hidden {
  static constexpr auto call = hidden_tile<R>;
};
constexpr auto hidden_tiles = table<Hidden>(std::make_integer_sequence<int, MR>{});

// Where the W units of each row from `first` on lie.
static void find_places(const Places& places, i64 first, i64 rows, i64* place) {
  for (i64 r = 0; r < rows; ++r) place[r] = places.of(first + r) * W;
}

// act [F / W][places][W] of the rows from `first` on = silu(gate x) * (up x), x [D / W][rows][W].
static void conv_hidden(const Layer& layer, const float* x, float* act, i64 L, i64 D, i64 first, i64 rows) {
  const SwiGLU& w = layer.channel;
  const Places places(layer.conv, L);
  i64 place[kRowChunk];
  find_places(places, first, rows, place);
  const i64 tiles = ceil_div(rows, MR);
  for (i64 f = 0; f < w.inner; f += W)
    for (i64 i = 0; i < tiles; ++i) {
      const i64 r = part(rows, tiles, i), R = part(rows, tiles, i + 1) - r;
      hidden_tiles[R - 1](x + r * W, rows * W, w.gate_up.words + f / W * D * NR, D, place + r, act + f * places.count);
    }
}

// work[rows] = h, the sum of sources; the hidden units of these rows into act.
static void conv_expand(const Layer& layer, const Sources& sources, float* work, float* act, i64 L, i64 D, i64 first,
                        i64 last, float* scratch) {
  sum_rows(sources, work, D, first, last - first, scratch);
  conv_hidden(layer, scratch, act, L, D, first, last - first);
}

// work[rows] = h = rms_norm(work + out_proj(mixed)); the hidden units of these rows into act.
static void attention_conv_expand(const Layer& layer, const float* mixed, float* work, float* act, i64 L, i64 D,
                                  i64 first, i64 last, float* scratch) {
  attention_out(layer, mixed, work, D, first, last - first, scratch);
  unpack_rows(scratch, D, first, last - first, work);
  conv_hidden(layer, scratch, act, L, D, first, last - first);
}

// out [rows][W] = silu(conv(act)) at `place` of each row; taps [count][W] and act [places][W] of the same channels.
static void conv_rows(const Conv& c, const Places& places, const i64* place, i64 rows, const float* act,
                      const float* taps, const float* bias, float* out) {
  constexpr int N = 6;
  for (i64 r = 0; r < rows;) {
    const bool alone = place[r] < places.prefix * W;  // no convolution
    i64 n = 1;
    while (n < N && r + n < rows && (place[r + n] < places.prefix * W) == alone) ++n;
    const float* at[N];
    V v[N];
    RTM_EACH at[i] = act + place[r + (i < n ? i : n - 1)];
    RTM_EACH v[i] = load(alone ? at[i] : bias);
    const float* tap = taps;
    for (i64 y = 0; y < places.height && !alone; ++y)
      for (i64 x = 0; x < c.width; ++x, tap += W) {
        const V w = load(tap);
        const i64 to = ((y - places.height / 2) * places.row + x - c.width / 2) * W;
        RTM_EACH v[i] = fma(w, load(at[i] + to), v[i]);
      }
    silu(v);
    RTM_EACH if (i < n) store(out + (r + i) * W, v[i]);
    r += n;
  }
}

// dst[rows] = rms_norm(h + down(silu(conv(act)))), h = work[rows].
static void conv_reduce(const Layer& layer, const float* act, const float* work, float* dst, i64 L, i64 D, i64 first,
                        i64 last, float* scratch) {
  const i64 rows = last - first, taps = layer.conv.taps();
  float *out = scratch, *inner = out + row_blocks(D) * rows * W;
  const SwiGLU& w = layer.channel;
  const Places places(layer.conv, L);
  i64 place[kRowChunk];
  find_places(places, first, rows, place);
  for (i64 f0 = 0; f0 < w.inner; f0 += kInnerBlock) {
    const i64 width = w.inner - f0 < kInnerBlock ? w.inner - f0 : kInnerBlock;
    for (i64 f = f0; f < f0 + width; f += W)
      conv_rows(layer.conv, places, place, rows, act + f * places.count, layer.conv.weight + f * taps,
                layer.conv.bias + f, inner + (f - f0) * rows);
    product(inner, rows, w.down.words + f0 * row_blocks(D) * W, width, D, out, f0 > 0);
  }
  norm_onto(work, out, D, first, rows, layer.eps, dst);
}

}  // namespace rtm::RTM_ISA
