// The token mix of symmetric layers: every channel by itself, W of them in a vector.
#pragma once

#include "simd.h"
#include "symmetric_layers.h"

namespace rtm::RTM_ISA {

struct Board {
  V line[2][kMaxSide], box[kMaxSide], band[kMaxBands], stack[kMaxBands], all;
};

// Sums of x [L] over rows, columns, boxes, bands, stacks and the board.
RTM_INLINE void board_sums(const SymmetricSizes& z, const V* x, Board& s) {
  const i64 n = z.n, m = z.box;
  for (i64 i = 0; i < n; ++i) s.line[0][i] = s.line[1][i] = s.box[i] = set1(0.0f);
  for (i64 i = 0; i < m; ++i) s.band[i] = s.stack[i] = set1(0.0f);
  s.all = set1(0.0f);
  for (i64 r = 0; r < n; ++r)
    for (i64 c = 0; c < n; ++c) {
      const V v = x[r * n + c];
      s.line[0][r] = s.line[0][r] + v;
      s.line[1][c] = s.line[1][c] + v;
      s.box[r / m * m + c / m] = s.box[r / m * m + c / m] + v;
    }
  for (i64 i = 0; i < n; ++i) {
    s.band[i / m] = s.band[i / m] + s.line[0][i];
    s.stack[i / m] = s.stack[i / m] + s.line[1][i];
    s.all = s.all + s.line[0][i];
  }
}

// What group g of 3n sees: its own sum, that of the bands and stacks it lies in.
RTM_INLINE V own_sum(const SymmetricSizes& z, const Board& s, i64 g) {
  return g < z.n ? s.line[0][g] : g < 2 * z.n ? s.line[1][g - z.n] : s.box[g - 2 * z.n];
}
RTM_INLINE V near_sum(const SymmetricSizes& z, const Board& s, i64 g) {
  const i64 n = z.n, m = z.box;
  if (g < n) return s.band[g / m];
  if (g < 2 * n) return s.stack[(g - n) / m];
  return s.band[(g - 2 * n) / m] + s.stack[(g - 2 * n) % m];
}

// What the groups hand to position (r, c), added to x [L]: the transpose of the sums above.
RTM_INLINE void spread(const SymmetricSizes& z, const V* own, const V* near, V all, V* x) {
  const i64 n = z.n, m = z.box;
  V band[kMaxBands], stack[kMaxBands];
  for (i64 i = 0; i < m; ++i) band[i] = stack[i] = set1(0.0f);
  for (i64 i = 0; i < n; ++i) {
    band[i / m] = band[i / m] + near[i];
    stack[i / m] = stack[i / m] + near[n + i];
    band[i / m] = band[i / m] + near[2 * n + i];
    stack[i % m] = stack[i % m] + near[2 * n + i];
  }
  for (i64 r = 0; r < n; ++r) {
    const V row = own[r] + band[r / m] + all;
    for (i64 c = 0; c < n; ++c)
      x[r * n + c] = x[r * n + c] + (row + own[n + c] + stack[c / m] + own[2 * n + r / m * m + c / m]);
  }
}

// A vector of channels of a latent: `at` and how far the next position is.
struct Lane {
  i64 at, stride;
};
RTM_INLINE Lane lane_of(const SymmetricSizes& z, i64 vector) {
  const i64 digits = z.n * z.Cp / W;
  if (vector < digits) return {vector * W, z.n * z.Cp};
  return {z.L * z.n * z.Cp + (vector - digits) * W, z.Rp};
}
RTM_INLINE i64 lanes(const SymmetricSizes& z) { return (z.n * z.Cp + z.Rp) / W; }

// coefficients of copy k: [type line | box][3]: own, near, all
RTM_INLINE const float* coefficients(const float* w, i64 k, i64 type) { return w + (k * 2 + type) * 3; }

// y = x + token mix of x, both [L] vectors.
static void mix_board(const SymmetricSizes& z, const SymmetricMixer& w, const V* x, V* y) {
  Board s;
  board_sums(z, x, s);
  V own[3 * kMaxSide], near[3 * kMaxSide], all = set1(0.0f);
  constexpr int G = 3;  // 9 copies for Sudoku of side 9
  for (i64 g = 0; g < 3 * z.n; ++g) {
    const i64 type = g >= 2 * z.n;
    const V p1 = own_sum(z, s, g), p2 = near_sum(z, s, g), p3 = s.all;
    V o = set1(0.0f), nr = set1(0.0f);
    for (i64 k0 = 0; k0 < z.copies; k0 += G) {
      V gate[G], up[G];
      for (int j = 0; j < G; ++j) {
        const i64 k = k0 + j < z.copies ? k0 + j : z.copies - 1;
        const float *a = coefficients(w.gate, k, type), *b = coefficients(w.up, k, type);
        gate[j] = fma(set1(a[0]), p1, fma(set1(a[1]), p2, set1(a[2]) * p3));
        up[j] = fma(set1(b[0]), p1, fma(set1(b[1]), p2, set1(b[2]) * p3));
      }
      swiglu(gate, up);
      for (int j = 0; j < G && k0 + j < z.copies; ++j) {
        const float* c = coefficients(w.down, k0 + j, type);
        o = fma(set1(c[0]), gate[j], o);
        nr = fma(set1(c[1]), gate[j], nr);
        all = fma(set1(c[2]), gate[j], all);
      }
    }
    own[g] = o;
    near[g] = nr;
  }
  for (i64 k = 0; k < z.still; ++k) {
    V gate[1] = {set1(w.gate_still[k]) * s.all}, up[1] = {set1(w.up_still[k]) * s.all};
    swiglu(gate, up);
    all = fma(set1(w.down_still[k]), gate[0], all);
  }
  for (i64 l = 0; l < z.L; ++l) y[l] = x[l];
  spread(z, own, near, all, y);
}

static void symmetric_token_mix(const SymmetricSizes& z, const SymmetricLayer& layer, const float* x, float* out,
                                float* rstd) {
  V in[kMaxCells], y[kMaxCells];
  for (i64 i = 0; i < lanes(z); ++i) {
    const Lane at = lane_of(z, i);
    for (i64 l = 0; l < z.L; ++l) in[l] = load(x + at.at + l * at.stride);
    mix_board(z, layer.mixer, in, y);
    V squares = set1(0.0f);
    for (i64 l = 0; l < z.L; ++l) squares = fma(y[l], y[l], squares);
    const V scale = set1(1.0f) / sqrt(squares / set1(static_cast<float>(z.L)) + set1(layer.eps));
    for (i64 l = 0; l < z.L; ++l) store(out + at.at + l * at.stride, y[l] * scale);
    if (rstd) store(rstd + i * W, scale);
  }
}

// silu and what its gradient needs, from a gate.
struct Silu {
  V value, slope;
};
RTM_INLINE Silu silu(V gate) {
  V e[1] = {set1(0.0f) - gate};
  exp(e);
  const V s = set1(1.0f) / (set1(1.0f) + e[0]);
  const V value = gate * s;
  return {value, fma(value, set1(1.0f) - s, s)};  // s (1 + gate (1 - s))
}

RTM_INLINE void add_to(float* at, V a) { store(at, load(at) + a); }

// The gradient of the output in `d` becomes that of the input; gradients of the weights, one float per lane, are
// added to `grads` (see `mixer_gradients`).
static void token_mix_backward(const SymmetricSizes& z, const SymmetricLayer& layer, const float* x, const float* out,
                               const float* rstd, float* d, float* grads) {
  const SymmetricMixer& w = layer.mixer;
  const i64 K = z.copies;
  float *g_gate = grads, *g_up = g_gate + K * 6 * W, *g_down = g_up + K * 6 * W, *g_still = g_down + K * 6 * W;
  V in[kMaxCells], dy[kMaxCells];
  for (i64 i = 0; i < lanes(z); ++i) {
    const Lane at = lane_of(z, i);
    V dot = set1(0.0f);
    for (i64 l = 0; l < z.L; ++l) {
      in[l] = load(x + at.at + l * at.stride);
      dy[l] = load(d + at.at + l * at.stride);
      dot = fma(dy[l], load(out + at.at + l * at.stride), dot);
    }
    const V scale = load(rstd + i * W), mean = dot / set1(static_cast<float>(z.L));
    for (i64 l = 0; l < z.L; ++l)
      dy[l] = scale * (dy[l] - load(out + at.at + l * at.stride) * mean);
    Board s, t;
    board_sums(z, in, s);
    board_sums(z, dy, t);
    V own[3 * kMaxSide], near[3 * kMaxSide], all = set1(0.0f);
    for (i64 g = 0; g < 3 * z.n; ++g) {
      const i64 type = g >= 2 * z.n;
      const V p1 = own_sum(z, s, g), p2 = near_sum(z, s, g), p3 = s.all;
      const V q1 = own_sum(z, t, g), q2 = near_sum(z, t, g), q3 = t.all;
      V o = set1(0.0f), nr = set1(0.0f);
      for (i64 k = 0; k < K; ++k) {
        const float *a = coefficients(w.gate, k, type), *b = coefficients(w.up, k, type),
                    *c = coefficients(w.down, k, type);
        const V gate = fma(set1(a[0]), p1, fma(set1(a[1]), p2, set1(a[2]) * p3));
        const V up = fma(set1(b[0]), p1, fma(set1(b[1]), p2, set1(b[2]) * p3));
        const Silu si = silu(gate);
        const V h = si.value * up;
        const V dh = fma(set1(c[0]), q1, fma(set1(c[1]), q2, set1(c[2]) * q3));
        const V du = dh * si.value, dg = dh * up * si.slope;
        o = fma(set1(a[0]), dg, fma(set1(b[0]), du, o));
        nr = fma(set1(a[1]), dg, fma(set1(b[1]), du, nr));
        all = fma(set1(a[2]), dg, fma(set1(b[2]), du, all));
        const i64 j = (k * 2 + type) * 3;
        float *ga = g_gate + j * W, *gb = g_up + j * W, *gc = g_down + j * W;
        add_to(ga, dg * p1), add_to(ga + W, dg * p2), add_to(ga + 2 * W, dg * p3);
        add_to(gb, du * p1), add_to(gb + W, du * p2), add_to(gb + 2 * W, du * p3);
        add_to(gc, h * q1), add_to(gc + W, h * q2), add_to(gc + 2 * W, h * q3);
      }
      own[g] = o;
      near[g] = nr;
    }
    for (i64 k = 0; k < z.still; ++k) {
      const V gate = set1(w.gate_still[k]) * s.all, up = set1(w.up_still[k]) * s.all;
      const Silu si = silu(gate);
      const V dh = set1(w.down_still[k]) * t.all;
      const V du = dh * si.value, dg = dh * up * si.slope;
      all = fma(set1(w.gate_still[k]), dg, fma(set1(w.up_still[k]), du, all));
      add_to(g_still + k * W, dg * s.all);
      add_to(g_still + (z.still + k) * W, du * s.all);
      add_to(g_still + (2 * z.still + k) * W, si.value * up * t.all);
    }
    spread(z, own, near, all, dy);
    for (i64 l = 0; l < z.L; ++l) store(d + at.at + l * at.stride, dy[l]);
  }
}

}  // namespace rtm::RTM_ISA
