// The attention half layer: projections by row chunks, softmax(q k^T) v by tiles of rows of one head.
#pragma once

#include "mlp.h"

namespace rtm::RTM_ISA {

// One row of q or k [head_dim] in place: RMSNorm without weight, then rotary positions.
static void rotate(const Attention& a, float* x, i64 position, float eps, float* rotated) {
  const i64 n = a.head_dim, half = n / 2;
  if (a.qk_norm) {
    float squares = 0.0f;
    for (i64 i = 0; i < n; ++i) squares += x[i] * x[i];
    const float scale = inverse_rms(squares, n, eps);
    for (i64 i = 0; i < n; ++i) x[i] *= scale;
  }
  if (!a.cos) return;
  const float *cos = a.cos + position * n, *sin = a.sin + position * n;
  for (i64 i = 0; i < half; ++i) {
    rotated[i] = x[i] * cos[i] - x[i + half] * sin[i];
    rotated[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
  }
  std::memcpy(x, rotated, n * sizeof(float));
}

// One row [3D] of the projection into the layouts of `Heads`.
static void scatter_row(const Attention& a, float* row, i64 l, i64 L, i64 D, float eps, float* rotated,
                        const Heads& out) {
  const i64 n = a.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(n));
  for (i64 h = 0; h < a.heads; ++h) {
    float *q = row + h * n, *k = row + D + h * n;
    const float* v = row + 2 * D + h * n;
    rotate(a, q, l, eps, rotated);
    rotate(a, k, l, eps, rotated);
    float* query = out.query + h * round_up(n, W) * L + l * W;
    for (i64 i = 0; i < n; ++i) query[i / W * L * W + i % W] = q[i] * scale;
    float* key = out.key + (h * ceil_div(L, NR) + l / NR) * n * NR + l % NR;
    for (i64 i = 0; i < n; ++i) key[i * NR] = k[i];
    float* value = out.value + h * round_up(n, NR) * L + l * NR;
    for (i64 i = 0; i < n; ++i) value[i / NR * L * NR + i % NR] = v[i];
  }
}

static void attention_project(const Layer& layer, const Sources& sources, float* work, const Heads& heads, i64 L,
                              i64 D, i64 first, i64 last, float* scratch) {
  const i64 rows = last - first, blocks = row_blocks(3 * D);
  float *x = scratch, *qkv = x + row_blocks(D) * rows * W, *row = qkv + blocks * rows * W, *rotated = row + blocks * W;
  for (i64 l = first; l < last; ++l)
    for (i64 d = 0; d < D; d += W) store_first(work + l * D + d, summed(sources, l * D + d, D - d), D - d);
  pack_rows(work, D, first, rows, x);
  product(x, rows, layer.attention.qkv, D, 3 * D, qkv, false);
  for (i64 r = 0; r < rows; ++r) {
    for (i64 b = 0; b < blocks; ++b) store(row + b * W, load(qkv + (b * rows + r) * W));
    scatter_row(layer.attention, row, first + r, L, D, layer.eps, rotated, heads);
  }
}

// scores[keys / W][R][W] -> exp(score - max), 0 from `valid` keys on; returns the sum.
RTM_INLINE float softmax_row(float* scores, i64 R, i64 blocks, i64 valid) {
  float lanes[W];
  for (i64 i = 0; i < W; ++i) lanes[i] = static_cast<float>(i);
  const V index = load(lanes);
  V top = set1(-INFINITY);
  for (i64 b = 0; b < blocks; ++b) {
    float* at = scores + b * R * W;
    const V s = keep_below(load(at), index, static_cast<float>(valid - b * W), -INFINITY);
    top = max(top, s);
    store(at, s);
  }
  const V peak = set1(largest(top));
  V total = set1(0.0f);
  for (i64 b = 0; b < blocks; b += 2) {
    float *at = scores + b * R * W, *next = at + R * W;
    V p[2] = {load(at) - peak, load(next) - peak};
    exp(p);
    p[0] = keep_below(p[0], index, static_cast<float>(valid - b * W), 0.0f);
    p[1] = keep_below(p[1], index, static_cast<float>(valid - (b + 1) * W), 0.0f);
    total = total + p[0] + p[1];
    store(at, p[0]);
    store(next, p[1]);
  }
  return sum(total);
}

static void attend(const Layer& layer, const Heads& heads, i64 L, i64 D, i64 head, i64 first, i64 last,
                   float* scratch) {
  const Attention& a = layer.attention;
  const i64 n = a.head_dim, tiles = ceil_div(last - first, MR);
  for (i64 i = 0; i < tiles; ++i) {
    const i64 l = first + part(last - first, tiles, i), R = first + part(last - first, tiles, i + 1) - l;
    const i64 keys = a.causal ? l + R : L, panels = ceil_div(keys, NR);
    float *scores = scratch, *mixed = scores + panels * R * NR;
    const float* query = heads.query + head * round_up(n, W) * L + l * W;
    for (i64 p = 0; p < panels; ++p) {
      const float* key = heads.key + (head * ceil_div(L, NR) + p) * n * NR;
      product_tiles[R - 1](query, L * W, key, n, scores + p * R * NR, R * W, false);
    }
    float scale[MR];
    for (i64 r = 0; r < R; ++r)
      scale[r] = 1.0f / softmax_row(scores + r * W, R, 2 * panels, a.causal ? l + r + 1 : L);
    for (i64 c = 0; c < n; c += NR) {
      const float* value = heads.value + (head * round_up(n, NR) + c) * L;
      product_tiles[R - 1](scores, R * W, value, keys, mixed, R * W, false);
      for (i64 r = 0; r < R; ++r)
        for (i64 v = 0; v < 2 && c + v * W < n; ++v)
          store_first(heads.mixed + (l + r) * D + head * n + c + v * W,
                      load(mixed + (v * R + r) * W) * set1(scale[r]), n - c - v * W);
    }
  }
}

// dst[rows] = channel half layer of rms_norm(work + out_proj(mixed)).
static void attention_channel_mix(const Layer& layer, const float* mixed, const float* work, float* dst, i64 D,
                                  i64 first, i64 last, float* scratch) {
  const i64 rows = last - first, size = row_blocks(D) * rows * W;
  float *x = scratch, *a = x + size, *residual = a + size;
  pack_rows(mixed, D, first, rows, a);
  pack_rows(work, D, first, rows, residual);
  product(a, rows, layer.attention.out, D, D, x, false);
  norm_rows(x, residual, D, rows, layer.eps);
  mix_rows(layer, x, dst, D, first, rows, a, residual);
}

}  // namespace rtm::RTM_ISA
