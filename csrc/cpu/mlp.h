// The two half layers of an MLP block: SwiGLU over the sequence and SwiGLU over the hidden axis.
#pragma once

#include "gemm.h"
#ifdef RTM_REDUCED
#include "reduced.h"
#endif

namespace rtm::RTM_ISA {

// --- rows: activations [rows, D] held as [D / W][rows][W], padded with zeros to a whole number of panels ---

static void pack_rows(const float* x, i64 D, i64 first, i64 rows, float* packed) {
  for (i64 b = 0; b < row_blocks(D); ++b)
    for (i64 r = 0; r < rows; ++r) {
      const i64 d = b * W;
      const V v = d < D ? load_first(x + (first + r) * D + d, D - d) : set1(0.0f);
      store(packed + (b * rows + r) * W, v);
    }
}

RTM_INLINE V summed(const float* const* terms, i64 count, i64 at, i64 n) {
  V total = load_first(terms[0] + at, n);
  for (i64 i = 1; i < count; ++i) total = total + load_first(terms[i] + at, n);
  return total;
}

RTM_INLINE V summed(const Sources& s, i64 at, i64 n) {
  const V state = summed(s.state, s.states, at, n);
  return s.injects ? state + summed(s.inject, s.injects, at, n) : state;
}

// work[rows] = sum of sources, packed as well.
static void sum_rows(const Sources& sources, float* work, i64 D, i64 first, i64 rows, float* packed) {
  for (i64 b = 0; b < row_blocks(D); ++b)
    for (i64 r = 0; r < rows; ++r) {
      const i64 left = D - b * W, at = (first + r) * D + b * W;
      const V v = left > 0 ? summed(sources, at, left) : set1(0.0f);
      if (left > 0) store_first(work + at, v, left);
      store(packed + (b * rows + r) * W, v);
    }
}

// packed = rms_norm(packed + residual) over D for each row; residual may be null.
static void norm_rows(float* packed, const float* residual, i64 D, i64 rows, float eps) {
  const i64 blocks = ceil_div(D, W);
  for (i64 r = 0; r < rows; ++r) {
    V squares = set1(0.0f);
    for (i64 b = 0; b < blocks; ++b) {
      const i64 at = (b * rows + r) * W;
      const V v = residual ? load(residual + at) + load(packed + at) : load(packed + at);
      squares = fma(v, v, squares);
      store(packed + at, v);
    }
    const V scale = set1(inverse_rms(sum(squares), D, eps));
    for (i64 b = 0; b < blocks; ++b) {
      float* at = packed + (b * rows + r) * W;
      store(at, load(at) * scale);
    }
  }
}

static void unpack_rows(const float* packed, i64 D, i64 first, i64 rows, float* x) {
  for (i64 r = 0; r < rows; ++r)
    for (i64 d = 0; d < D; d += W)
      store_first(x + (first + r) * D + d, load(packed + (d / W * rows + r) * W), D - d);
}

// dst[rows] = rms_norm(work[rows] + packed).
static void norm_onto(const float* work, const float* packed, i64 D, i64 first, i64 rows, float eps, float* dst) {
  for (i64 r = 0; r < rows; ++r, ++first) {
    V squares = set1(0.0f);
    for (i64 d = 0; d < D; d += W) {
      const V v = load_first(work + first * D + d, D - d) + load(packed + (d / W * rows + r) * W);
      squares = fma(v, v, squares);
      store_first(dst + first * D + d, v, D - d);
    }
    const V scale = set1(inverse_rms(sum(squares), D, eps));
    for (i64 d = 0; d < D; d += W) {
      float* at = dst + first * D + d;
      store_first(at, load_first(at, D - d) * scale, D - d);
    }
  }
}

// out[N][W] = silu(gate) * up
template <int N>
RTM_INLINE void store_swiglu(const V (&gate)[N], const V (&up)[N], float* out) {
  constexpr int G = 4;
  for (int i = 0; i < N; i += G) {
    V g[G], u[G];
    for (int j = 0; j < G; ++j) {
      const int at = i + j < N ? i + j : N - 1;
      g[j] = gate[at];
      u[j] = up[at];
    }
    swiglu(g, u);
    for (int j = 0; j < G && i + j < N; ++j) store(out + (i + j) * W, g[j]);
  }
}

// out[R][W] = silu(a gate) * (a up); the panel holds W gate columns and W up columns.
template <int R>
void gate_up_tile(const float* a, i64 a_block, const float* b, i64 K, float* out) {
  Tile<R> t;
  multiply(t, a, a_block, b, K);
  V gate[R], up[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    gate[r] = t.c[r][0];
    up[r] = t.c[r][1];
  }
  store_swiglu(gate, up, out);
}

template <int R>
struct GateUp {
  static constexpr auto call = gate_up_tile<R>;
};
constexpr auto gate_up_tiles = table<GateUp>(std::make_integer_sequence<int, MR>{});

// out [D / W][rows][W] = swiglu over D of x [D / W][rows][W]; inner is scratch [kInnerBlock / W][rows][W].
static void swiglu_rows(const SwiGLU& w, const float* x, i64 D, i64 rows, float* out, float* inner) {
#ifdef RTM_REDUCED
  if (w.gate_up.reduced) return reduced_swiglu_rows(w, x, D, rows, out, inner);
#endif
  const i64 tiles = ceil_div(rows, MR);
  for (i64 f0 = 0; f0 < w.inner; f0 += kInnerBlock) {
    const i64 width = w.inner - f0 < kInnerBlock ? w.inner - f0 : kInnerBlock;
    for (i64 f = 0; f < width; f += W) {
      const float* panel = w.gate_up.words + (f0 + f) / W * D * NR;
      for (i64 i = 0; i < tiles; ++i) {
        const i64 r = part(rows, tiles, i), R = part(rows, tiles, i + 1) - r;
        gate_up_tiles[R - 1](x + r * W, rows * W, panel, D, inner + (f / W * rows + r) * W);
      }
    }
    product(inner, rows, w.down.words + f0 * row_blocks(D) * W, width, D, out, f0 > 0);
  }
}

// out = x w with w [D, D]; the scratch is that of `scratch_size`.
static void linear(const Linear& w, const float* x, i64 D, i64 rows, float* out, float* scratch) {
#ifdef RTM_REDUCED
  if (w.reduced) {
    float* scale = scratch + row_words(D, rows);
    convert_rows(x, row_blocks(D) * W, rows, scratch, scale);
    return reduced_product(scratch, scale, rows, w, D, D, out, false);
  }
#endif
  (void)scratch;
  product(x, rows, w.words, D, D, out, false);
}

// dst[rows] = rms_norm(x + swiglu over D of x); out like x and inner are scratch.
static void mix_rows(const Layer& layer, const float* x, float* dst, i64 D, i64 first, i64 rows, float* out,
                     float* inner) {
  swiglu_rows(layer.channel, x, D, rows, out, inner);
  norm_rows(out, x, D, rows, layer.eps);
  unpack_rows(out, D, first, rows, dst);
}

static void channel_mix(const Layer& layer, const float* work, float* dst, i64 D, i64 first, i64 last, float* scratch) {
  const i64 rows = last - first, size = row_blocks(D) * rows * W;
  float *x = scratch, *out = x + size, *inner = out + size;
  pack_rows(work, D, first, rows, x);
  if (layer.norm_hidden) norm_rows(x, nullptr, D, rows, layer.eps);
  mix_rows(layer, x, dst, D, first, rows, out, inner);
}

static void project(const Linear& w, const float* bias, const float* x, float* out, i64 D, i64 N, i64 first, i64 last,
                    float* scratch) {
  const i64 rows = last - first;
  float *packed = scratch, *panel = packed + row_blocks(D) * rows * W;
  pack_rows(x, D, first, rows, packed);
  for (i64 n = 0; n < N; n += NR) {
    product(packed, rows, w.words + n * D, D, std::min(NR, N - n), panel, false);
    for (i64 v = 0; v < 2 && n + v * W < N; ++v)
      for (i64 r = 0; r < rows; ++r)
        store_first(out + (first + r) * N + n + v * W, load(panel + (v * rows + r) * W) + load(bias + n + v * W),
                    N - n - v * W);
  }
}

// --- columns: activations [L, 2W] of one tile of channels, contiguous ---

// out[R / 2][2W] = silu(gate b) * (up b); the first half of the rows of a are gates, the second half ups.
template <int R>
void gate_up_columns(const float* a, const float* b, i64 K, float* out) {
  Tile<R> t;
  multiply(t, a, R * W, b, K);
  V gate[R], up[R];
#pragma GCC unroll 32
  for (int i = 0; i < R; ++i) {
    gate[i] = t.c[i / 2][i % 2];
    up[i] = t.c[R / 2 + i / 2][i % 2];
  }
  store_swiglu(gate, up, out);
}

// out = residual + a b; adds the squares of out to squares [2W].
template <int R>
void down_columns(const float* a, const float* b, i64 K, const float* residual, float* out, float* squares) {
  Tile<R> t;
  multiply(t, a, R * W, b, K);
  for (int v = 0; v < 2; ++v) {
    V total = load(squares + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V y = load(residual + r * NR + v * W) + t.c[r][v];
      total = fma(y, y, total);
      store(out + r * NR + v * W, y);
    }
    store(squares + v * W, total);
  }
}

template <int R>
struct GateUpColumns {
  static constexpr auto call = gate_up_columns<2 * R>;
};
template <int R>
struct DownColumns {
  static constexpr auto call = down_columns<R>;
};
constexpr auto gate_up_column_tiles = table<GateUpColumns>(std::make_integer_sequence<int, MR / 2>{});
constexpr auto down_column_tiles = table<DownColumns>(std::make_integer_sequence<int, MR>{});

// y [L, 2W] = x + swiglu over L of x [L, 2W]; inner is scratch [F, 2W].
static void swiglu_columns(const SwiGLU& w, const float* x, i64 L, float* y, float* inner, float* squares) {
#ifdef RTM_REDUCED
  if (w.gate_up.reduced) return reduced_swiglu_columns(w, x, L, y, inner, squares);
#endif
  const i64 pairs = ceil_div(w.inner, MR / 2), padded_L = round_up(L, W);
  for (i64 i = 0; i < pairs; ++i) {
    const i64 f = part(w.inner, pairs, i), R = part(w.inner, pairs, i + 1) - f;
    gate_up_column_tiles[R - 1](w.gate_up.words + 2 * f * padded_L, x, L, inner + f * NR);
  }
  const i64 tiles = ceil_div(L, MR);
  for (i64 i = 0; i < tiles; ++i) {
    const i64 l = part(L, tiles, i), R = part(L, tiles, i + 1) - l;
    down_column_tiles[R - 1](w.down.words + l * w.inner, inner, w.inner, x + l * NR, y + l * NR, squares);
  }
}

static void token_mix(const Layer& layer, const Sources& sources, float* work, i64 L, i64 D, i64 first, i64 last,
                      float* scratch) {
  float *x = scratch, *y = x + L * NR, *inner = y + L * NR;
  for (i64 tile = first; tile < last; ++tile) {
    const i64 d = tile * NR;
    for (i64 l = 0; l < L; ++l)
      for (int v = 0; v < 2; ++v) {
        const i64 left = D - d - v * W;
        store(x + l * NR + v * W, left > 0 ? summed(sources, l * D + d + v * W, left) : set1(0.0f));
      }
    float squares[NR] = {};
    swiglu_columns(layer.mixer, x, L, y, inner, squares);
    for (int v = 0; v < 2; ++v) {
      const i64 left = D - d - v * W;
      if (left <= 0) break;
      const V variance = load(squares + v * W) / set1(static_cast<float>(L)) + set1(layer.eps);
      const V scale = layer.norm_hidden ? set1(1.0f) : set1(1.0f) / sqrt(variance);
      for (i64 l = 0; l < L; ++l)
        store_first(work + l * D + d + v * W, load(y + l * NR + v * W) * scale, left);
    }
  }
}

}  // namespace rtm::RTM_ISA
