// The attention half layer: projections by row chunks, softmax(q k^T) v by tiles of rows of one head.
#pragma once

#include "mlp.h"

namespace rtm::RTM_ISA {

// One row of q or k [head_dim] in place: RMSNorm without weight, then rotary positions.
static void rotate(const Attention& a, float* x, i64 position, float eps, float* rotated) {
  const i64 n = a.head_dim, half = n / 2;
  if (a.qk_norm) {
    V squares = set1(0.0f);
    for (i64 i = 0; i < n; i += W) squares = fma(load_first(x + i, n - i), load_first(x + i, n - i), squares);
    const V scale = set1(inverse_rms(sum(squares), n, eps));
    for (i64 i = 0; i < n; i += W) store_first(x + i, load_first(x + i, n - i) * scale, n - i);
  }
  if (!a.cos) return;
  const float *cos = a.cos + position * n, *sin = a.sin + position * n;
  for (i64 i = 0; i < half; i += W) {
    const i64 left = half - i, j = i + half;
    const V low = load_first(x + i, left), high = load_first(x + j, left);
    const V minus = set1(0.0f) - high;
    store_first(rotated + i, fma(minus, load_first(sin + i, left), low * load_first(cos + i, left)), left);
    store_first(rotated + j, fma(low, load_first(sin + j, left), high * load_first(cos + j, left)), left);
  }
  std::memcpy(x, rotated, n * sizeof(float));
}

// One row [D] of q (part 0), k or v into its layout of `Heads`.
static void scatter_row(const Attention& a, i64 part, float* row, i64 l, i64 L, float eps, float* rotated,
                        const Heads& out) {
  const i64 n = a.head_dim;
  const V scale = set1(part == 0 ? 1.0f / std::sqrt(static_cast<float>(n)) : 1.0f);
  for (i64 h = 0; h < a.heads; ++h) {
    float* x = row + h * n;
    if (part < 2) rotate(a, x, l, eps, rotated);
    if (part == 1) {
      float* key = out.key + (h * ceil_div(L, NR) + l / NR) * n * NR + l % NR;
      for (i64 i = 0; i < n; ++i) key[i * NR] = x[i];
      continue;
    }
    const i64 width = part == 0 ? W : NR;
    float* to = (part == 0 ? out.query : out.value) + h * round_up(n, width) * L + l * width;
    for (i64 i = 0; i < n; i += W) store(to + i / width * L * width + i % width, load_first(x + i, n - i) * scale);
  }
}

// Weight `part` of those [D, D] that lie one behind the other.
RTM_INLINE Linear part_of(const Linear& w, i64 part, i64 D) {
  const i64 columns = row_blocks(D) * W;
#ifdef RTM_REDUCED
  if (w.reduced) return at(w, part * columns * words(D), part * columns);
#endif
  return {w.words + part * columns * D, false, nullptr, nullptr};
}

static void attention_project(const Layer& layer, const Sources& sources, float* work, const Heads& heads, i64 L,
                              i64 D, i64 first, i64 last, float* scratch) {
  const i64 rows = last - first, blocks = row_blocks(D), size = blocks * rows * W;
  float *x = scratch, *projected = x + size, *row = projected + size, *rotated = row + blocks * W;
  float* reduced = rotated + round_up(D, W);
  sum_rows(sources, work, D, first, rows, x);
  for (i64 part = 0; part < 3; ++part) {
    linear(part_of(layer.attention.qkv, part, D), x, D, rows, projected, reduced);
    for (i64 r = 0; r < rows; ++r) {
      for (i64 b = 0; b < blocks; ++b) store(row + b * W, load(projected + (b * rows + r) * W));
      scatter_row(layer.attention, part, row, first + r, L, layer.eps, rotated, heads);
    }
  }
}

// scores[blocks][R][W] of one row -> exp(score - max), and 0 from `valid` keys on; returns the sum.
RTM_INLINE float softmax_row(float* scores, i64 R, i64 blocks, i64 valid) {
  constexpr i64 G = 4;
  float lanes[W];
  for (i64 i = 0; i < W; ++i) lanes[i] = static_cast<float>(i);
  const V index = load(lanes);
  const i64 open = valid / W / G * G, stride = R * W;  // blocks, in groups, that no mask touches
  V tops[G] = {set1(-INFINITY), set1(-INFINITY), set1(-INFINITY), set1(-INFINITY)};
  for (i64 b = 0; b < open; b += G)
    for (i64 i = 0; i < G; ++i) tops[i] = max(tops[i], load(scores + (b + i) * stride));
  V top = max(max(tops[0], tops[1]), max(tops[2], tops[3]));
  for (i64 b = open; b < blocks; ++b)
    top = max(top, keep_below(load(scores + b * stride), index, static_cast<float>(valid - b * W), -INFINITY));
  const V peak = set1(largest(top));
  V total = set1(0.0f);
  for (i64 b = 0; b < open; b += G) {
    V p[G];
    for (i64 i = 0; i < G; ++i) p[i] = load(scores + (b + i) * stride) - peak;
    exp(p);
    for (i64 i = 0; i < G; ++i) {
      total = total + p[i];
      store(scores + (b + i) * stride, p[i]);
    }
  }
  for (i64 b = open; b < blocks; ++b) {
    V p[1] = {load(scores + b * stride) - peak};
    exp(p);
    p[0] = keep_below(p[0], index, static_cast<float>(valid - b * W), 0.0f);
    total = total + p[0];
    store(scores + b * stride, p[0]);
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

// out = rms_norm(work + out_proj(mixed)), packed; the scratch that follows out is used.
static void attention_out(const Layer& layer, const float* mixed, const float* work, i64 D, i64 first, i64 rows,
                          float* out) {
  const i64 size = row_blocks(D) * rows * W;
  float *a = out + size, *residual = a + size;
  pack_rows(mixed, D, first, rows, a);
  pack_rows(work, D, first, rows, residual);
  linear(layer.attention.out, a, D, rows, out, residual + size);
  norm_rows(out, residual, D, rows, layer.eps);
}

// dst[rows] = channel half layer of rms_norm(work + out_proj(mixed)).
static void attention_channel_mix(const Layer& layer, const float* mixed, const float* work, float* dst, i64 D,
                                  i64 first, i64 last, float* scratch) {
  const i64 rows = last - first, size = row_blocks(D) * rows * W;
  attention_out(layer, mixed, work, D, first, rows, scratch);
  mix_rows(layer, scratch, dst, D, first, rows, scratch + size, scratch + 2 * size);
}

}  // namespace rtm::RTM_ISA
