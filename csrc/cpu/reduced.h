// The products of mlp.h with operands in the reduced format of RTM_REDUCED (int8.h or bfloat16.h). Layouts and tiles
// are those of float32 with a word of kPerWord neighbours along K in the place of a float; what a product gives is
// float32 again, so injections, residuals, norms and the softmax do not know the format.
#pragma once

#include RTM_REDUCED

namespace rtm::RTM_ISA {

RTM_INLINE i64 words(i64 K) { return ceil_div(K, kPerWord); }
RTM_INLINE i64 row_words(i64 K, i64 rows) { return ceil_div(words(K), W) * W * rows; }  // floats of converted rows

// The part of a packed weight that starts `word` words and `place` outputs after its begin.
RTM_INLINE Linear at(const Linear& w, i64 word, i64 place) {
  return {w.words + word, true, w.scale ? w.scale + place : nullptr, w.offset ? w.offset + place : nullptr};
}

// gate = silu(gate) * up of N vectors, to about 1e-4: 2^r by a cubic on |r| <= 1/2, a reciprocal of 14 bits.
template <int N>
RTM_INLINE void fast_swiglu(V (&gate)[N], const V (&up)[N]) {
  V n[N], r[N], p[N];
  RTM_EACH r[i] = gate[i] * set1(-1.44269504f);
  RTM_EACH n[i] = _mm512_roundscale_ps(r[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  RTM_EACH r[i] = r[i] - n[i];
  RTM_EACH p[i] = fma(set1(0.0551715f), r[i], set1(0.24261114f));
  RTM_EACH p[i] = fma(p[i], r[i], set1(0.69326102f));
  RTM_EACH p[i] = fma(p[i], r[i], set1(0.99992807f));
  RTM_EACH p[i] = set1(1.0f) + _mm512_scalef_ps(p[i], n[i]);
  RTM_EACH gate[i] = gate[i] * up[i] * _mm512_rcp14_ps(p[i]);
}

// out[N][W] = silu(gate) * up
template <int N>
RTM_INLINE void store_fast_swiglu(const V (&gate)[N], const V (&up)[N], float* out) {
  constexpr int G = 4;
  for (int i = 0; i < N; i += G) {
    V g[G], u[G];
    for (int j = 0; j < G; ++j) {
      const int from = i + j < N ? i + j : N - 1;
      g[j] = gate[from];
      u[j] = up[from];
    }
    fast_swiglu(g, u);
    for (int j = 0; j < G && i + j < N; ++j) store(out + (i + j) * W, g[j]);
  }
}

// --- rows: activations are the broadcast operand ---

template <int R>
RTM_INLINE void multiply_rows(Tile<R, RowSums>& t, const float* a, i64 a_block, const Linear& w, i64 K) {
  const auto first = start_columns(w, 0), second = start_columns(w, W);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    t.c[r][0] = first;
    t.c[r][1] = second;
  }
  multiply_chain(t, a, a_block, w.words, K);
}

// out[R][W] = silu(a gate) * (a up); the panel holds W gate columns and W up columns.
template <int R>
void gate_up_rows(const float* a, i64 a_block, const float* scale, const Linear& w, i64 K, float* out) {
  Tile<R, RowSums> t;
  multiply_rows(t, a, a_block, w, K);
  const V gate_scale = scale_columns(w, 0), up_scale = scale_columns(w, W);
  V gate[R], up[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    gate[r] = value(t.c[r][0], gate_scale, set1(scale[r]));
    up[r] = value(t.c[r][1], up_scale, set1(scale[r]));
  }
  store_fast_swiglu(gate, up, out);
}

// out (+)= a w; out in the rows layout, its two blocks out_block floats apart.
template <int R>
void linear_rows(const float* a, i64 a_block, const float* scale, const Linear& w, i64 K, float* out, i64 out_block,
                 bool accumulate) {
  Tile<R, RowSums> t;
  multiply_rows(t, a, a_block, w, K);
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const V weight_scale = scale_columns(w, v * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* to = out + v * out_block + r * W;
      const V y = value(t.c[r][v], weight_scale, set1(scale[r]));
      store(to, accumulate ? load(to) + y : y);
    }
  }
}

template <int R>
struct GateUpRows {
  static constexpr auto call = gate_up_rows<R>;
};
template <int R>
struct LinearRows {
  static constexpr auto call = linear_rows<R>;
};
constexpr auto gate_up_row_tiles = table<GateUpRows>(std::make_integer_sequence<int, MR>{});
constexpr auto linear_row_tiles = table<LinearRows>(std::make_integer_sequence<int, MR>{});

// out (+)= a w over all rows, with a converted already.
static void reduced_product(const float* a, const float* scale, i64 rows, const Linear& w, i64 K, i64 N, float* out,
                            bool accumulate) {
  const i64 tiles = ceil_div(rows, MR), Kw = words(K);
  for (i64 n = 0; n < ceil_div(N, NR); ++n)
    for (i64 i = 0; i < tiles; ++i) {
      const i64 r = part(rows, tiles, i), R = part(rows, tiles, i + 1) - r;
      linear_row_tiles[R - 1](a + r * W, rows * W, scale + r, at(w, n * Kw * NR, n * NR), Kw,
                              out + (2 * n * rows + r) * W, rows * W, accumulate);
    }
}

// As swiglu_rows; `inner` is followed by the converted x and inner, and their scales.
static void reduced_swiglu_rows(const SwiGLU& w, const float* x, i64 D, i64 rows, float* out, float* inner) {
  const i64 tiles = ceil_div(rows, MR), Dw = words(D), columns = row_blocks(D) * W;
  float *xw = inner + kInnerBlock * rows, *inner_words = xw + row_words(D, rows);
  float *scale = inner_words + row_words(kInnerBlock, rows), *inner_scale = scale + rows;
  convert_rows(x, columns, rows, xw, scale);
  for (i64 f0 = 0; f0 < w.inner; f0 += kInnerBlock) {
    const i64 width = std::min(kInnerBlock, w.inner - f0);
    for (i64 f = 0; f < width; f += W) {
      const Linear panel = at(w.gate_up, (f0 + f) / W * Dw * NR, (f0 + f) / W * NR);
      for (i64 i = 0; i < tiles; ++i) {
        const i64 r = part(rows, tiles, i), R = part(rows, tiles, i + 1) - r;
        gate_up_row_tiles[R - 1](xw + r * W, rows * W, scale + r, panel, Dw, inner + (f / W * rows + r) * W);
      }
    }
    convert_rows(inner, width, rows, inner_words, inner_scale);
    reduced_product(inner_words, inner_scale, rows, at(w.down, words(f0) * columns, f0 / kInnerBlock * columns), width,
                    D, out, f0 > 0);
  }
}

// --- columns: weights are the broadcast operand ---

template <int R>
RTM_INLINE void multiply_columns(Tile<R, ColumnSums>& t, const Linear& w, const float* b, i64 K) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) t.c[r][0] = t.c[r][1] = start_row(w, r);
  multiply_chain(t, w.words, R * W, b, K);
}

// out[R / 2][2W] = silu(gate b) * (up b); the first half of the rows of w are gates, the second half ups.
template <int R>
void gate_up_reduced_columns(const Linear& w, const float* b, const float* scale, i64 K, float* out) {
  Tile<R, ColumnSums> t;
  multiply_columns(t, w, b, K);
  V gate[R], up[R];
#pragma GCC unroll 32
  for (int i = 0; i < R; ++i) {
    const V column_scale = load(scale + i % 2 * W);
    gate[i] = value(t.c[i / 2][i % 2], scale_row(w, i / 2), column_scale);
    up[i] = value(t.c[R / 2 + i / 2][i % 2], scale_row(w, R / 2 + i / 2), column_scale);
  }
  store_fast_swiglu(gate, up, out);
}

// out = residual + w b; adds the squares of out to squares [2W].
template <int R>
void down_reduced_columns(const Linear& w, const float* b, const float* scale, i64 K, const float* residual,
                          float* out, float* squares) {
  Tile<R, ColumnSums> t;
  multiply_columns(t, w, b, K);
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    V total = load(squares + v * W);
    const V column_scale = load(scale + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V y = load(residual + r * NR + v * W) + value(t.c[r][v], scale_row(w, r), column_scale);
      total = fma(y, y, total);
      store(out + r * NR + v * W, y);
    }
    store(squares + v * W, total);
  }
}

template <int R>
struct GateUpReducedColumns {
  static constexpr auto call = gate_up_reduced_columns<2 * R>;
};
template <int R>
struct DownReducedColumns {
  static constexpr auto call = down_reduced_columns<R>;
};
constexpr auto gate_up_reduced_tiles = table<GateUpReducedColumns>(std::make_integer_sequence<int, MR / 2>{});
constexpr auto down_reduced_tiles = table<DownReducedColumns>(std::make_integer_sequence<int, MR>{});

// As swiglu_columns; `inner` is followed by the converted x and inner, and their scales.
static void reduced_swiglu_columns(const SwiGLU& w, const float* x, i64 L, float* y, float* inner, float* squares) {
  const i64 pairs = ceil_div(w.inner, MR / 2), Lw = words(L), padded = round_up(Lw, W), Fw = words(w.inner);
  float *xw = inner + w.inner * NR, *inner_words = xw + Lw * NR;
  float *scale = inner_words + Fw * NR, *inner_scale = scale + NR;
  convert_columns(x, L, xw, scale);
  for (i64 i = 0; i < pairs; ++i) {
    const i64 f = part(w.inner, pairs, i), R = part(w.inner, pairs, i + 1) - f;
    gate_up_reduced_tiles[R - 1](at(w.gate_up, 2 * f * padded, 2 * f), xw, scale, Lw, inner + f * NR);
  }
  convert_columns(inner, w.inner, inner_words, inner_scale);
  const i64 tiles = ceil_div(L, MR);
  for (i64 i = 0; i < tiles; ++i) {
    const i64 l = part(L, tiles, i), R = part(L, tiles, i + 1) - l;
    down_reduced_tiles[R - 1](at(w.down, l * round_up(Fw, W), l), inner_words, inner_scale, Fw, x + l * NR, y + l * NR,
                              squares);
  }
}

// Floats of scratch behind the float32 needs of each kind.
static i64 reduced_rows_scratch(i64 D, i64 rows) {
  return row_words(D, rows) + row_words(kInnerBlock, rows) + 2 * rows;
}
static i64 reduced_columns_scratch(i64 L, i64 inner) { return (words(L) + words(inner) + 2) * NR; }

}  // namespace rtm::RTM_ISA
