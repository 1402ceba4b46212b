// Layers whose weights commute with the symmetries of Sudoku, on latents sorted by what those move.
//
// A latent of one sample is `digits` [L, n, C'] followed by `rest` [L, R']: channel (c, d) of copy c and digit d, then
// the channels that no digit moves; ' is rounded up to whole vectors, whose padding stays zero. A weight of the
// channel mix is then one matrix for all digits and a smaller one on their sum (`shared`); a unit of the token mix
// sees a row, column or box, the bands and stacks it lies in, and the whole board.
#pragma once

#include "symmetric_mixer.h"
#include "symmetric_products.h"

namespace rtm::RTM_ISA {

// Scratch of a channel mix over n positions.
struct Chunk {
  float *sum, *base, *u, *h, *h_sum, *base_out, *dh, *d_base, *du_sum, *d_sum;
};
static Chunk chunk_of(const SymmetricSizes& z, float* at) {
  const i64 n = z.n, S = z.Cp + z.Rp, T = z.Fp + z.Sp;
  Chunk c;
  const auto take = [&](i64 size) { float* p = at; at += size; return p; };
  c.sum = take(n * S);
  c.base = take(n * 2 * T);
  c.u = take(n * n * 2 * z.Fp);
  c.h = take(n * n * z.Fp);
  c.h_sum = take(n * T);
  c.base_out = take(n * S);
  c.dh = take(n * n * z.Fp);
  c.d_base = take(n * T);
  c.du_sum = take(n * 2 * T);
  c.d_sum = take(n * S);
  return c;
}
static i64 chunk_size(const SymmetricSizes& z) {
  const i64 n = z.n, S = z.Cp + z.Rp, T = z.Fp + z.Sp;
  return n * S * 3 + n * T * 6 + n * n * z.Fp * 4;
}

// sum [n, C' + R'] = the sum over the digits, then the rest, of n positions.
static void sum_digits(const SymmetricSizes& z, const float* digits, const float* rest, float* sum) {
  for (i64 p = 0; p < z.n; ++p, sum += z.Cp + z.Rp) {
    for (i64 c = 0; c < z.Cp; c += W) {
      V s = set1(0.0f);
      for (i64 d = 0; d < z.n; ++d) s = s + load(digits + (p * z.n + d) * z.Cp + c);
      store(sum + c, s);
    }
    for (i64 c = 0; c < z.Rp; c += W) store(sum + z.Cp + c, load(rest + p * z.Rp + c));
  }
}

template <int R>
static void gate_up(const SymmetricSizes& z, const SymmetricChannel& w, const float* digits, const Chunk& c) {
  const i64 n = z.n, S = z.Cp + z.Rp, T = z.Fp + z.Sp, per = n / R;
  const Segments channels{1, {0}, {z.C}}, all{2, {0, z.Cp}, {z.C, z.r}};
  symmetric_product<R>(per, {c.sum, S, R * S}, all, w.gate_up_shared, {nullptr, 0, 0}, c.base, 2 * T, R * 2 * T);
  for (i64 half = 0; half < 2; ++half)
    for (i64 q = 0; q < per; ++q)  // tiles of the positions, whose rows share one base row each
      symmetric_product<R>(n, {digits + q * R * z.Cp, z.Cp, n * z.Cp}, channels, half ? w.up : w.gate,
                           {c.base + half * T, 0, 2 * T}, c.u + q * R * 2 * z.Fp + half * z.Fp, 2 * z.Fp,
                           n * 2 * z.Fp);
}

static void hidden(const SymmetricSizes& z, const Chunk& c) {
  const i64 n = z.n, T = z.Fp + z.Sp;
  constexpr int G = 4;
  for (i64 p = 0; p < n; ++p) {
    for (i64 f = 0; f < z.Fp; f += W) {
      V sum = set1(0.0f);
      for (i64 d0 = 0; d0 < n; d0 += G) {
        V gate[G], up[G];
        for (int j = 0; j < G; ++j) {
          const i64 d = d0 + j < n ? d0 + j : n - 1;
          const float* u = c.u + (p * n + d) * 2 * z.Fp + f;
          gate[j] = load(u);
          up[j] = load(u + z.Fp);
        }
        swiglu(gate, up);
        for (int j = 0; j < G && d0 + j < n; ++j) {
          store(c.h + (p * n + d0 + j) * z.Fp + f, gate[j]);
          sum = sum + gate[j];
        }
      }
      store(c.h_sum + p * T + f, sum);
    }
    for (i64 f = z.Fp; f < T; f += W) {
      V gate[1] = {load(c.base + p * 2 * T + f)}, up[1] = {load(c.base + p * 2 * T + T + f)};
      swiglu(gate, up);
      store(c.h_sum + p * T + f, gate[0]);
    }
  }
}

// out = rms_norm(x + channel mix of x) over the channels of n positions; rstd [n] may be null.
template <int R>
static void channel_chunk(const SymmetricSizes& z, const SymmetricLayer& layer, const float* digits, const float* rest,
                          float* out_digits, float* out_rest, float* rstd, const Chunk& c) {
  const SymmetricChannel& w = layer.channel;
  const i64 n = z.n, S = z.Cp + z.Rp, T = z.Fp + z.Sp, per = n / R;
  sum_digits(z, digits, rest, c.sum);
  gate_up<R>(z, w, digits, c);
  hidden(z, c);
  const Segments units{1, {0}, {z.F}}, all{2, {0, z.Fp}, {z.F, z.s}};
  symmetric_product<R>(per, {c.h_sum, T, R * T}, all, w.down_shared, {nullptr, 0, 0}, c.base_out, S, R * S);
  float* y = c.dh;  // [n, n, C'], C' <= F'
  for (i64 q = 0; q < per; ++q)
    symmetric_product<R>(n, {c.h + q * R * z.Fp, z.Fp, n * z.Fp}, units, w.down, {c.base_out, 0, S}, y + q * R * z.Cp,
                         z.Cp, n * z.Cp);
  for (i64 p = 0; p < n; ++p) {
    V squares = set1(0.0f);
    for (i64 i = p * n * z.Cp; i < (p + 1) * n * z.Cp; i += W) {
      const V v = load(digits + i) + load(y + i);
      squares = fma(v, v, squares);
      store(y + i, v);
    }
    for (i64 i = 0; i < z.Rp; i += W) {
      const V v = load(rest + p * z.Rp + i) + load(c.base_out + p * S + z.Cp + i);
      squares = fma(v, v, squares);
      store(c.base_out + p * S + z.Cp + i, v);
    }
    const float r = inverse_rms(sum(squares), n * z.C + z.r, layer.eps);
    for (i64 i = p * n * z.Cp; i < (p + 1) * n * z.Cp; i += W) store(out_digits + i, load(y + i) * set1(r));
    for (i64 i = 0; i < z.Rp; i += W) store(out_rest + p * z.Rp + i, load(c.base_out + p * S + z.Cp + i) * set1(r));
    if (rstd) rstd[p] = r;
  }
}

// The gradient of the output of n positions in `d` becomes that of x; weight gradients are added.
template <int R>
static void channel_chunk_backward(const SymmetricSizes& z, const SymmetricLayer& layer, const float* digits,
                                   const float* rest, const float* out_digits, const float* out_rest,
                                   const float* rstd, float* d_digits, float* d_rest, const SymmetricGradients& g,
                                   const Chunk& c) {
  const SymmetricChannel& w = layer.channel;
  const i64 n = z.n, S = z.Cp + z.Rp, T = z.Fp + z.Sp, per = n / R;
  for (i64 p = 0; p < n; ++p) {
    V dot = set1(0.0f);
    for (i64 i = p * n * z.Cp; i < (p + 1) * n * z.Cp; i += W) dot = fma(load(d_digits + i), load(out_digits + i), dot);
    for (i64 i = p * z.Rp; i < (p + 1) * z.Rp; i += W) dot = fma(load(d_rest + i), load(out_rest + i), dot);
    const V mean = set1(sum(dot) / static_cast<float>(n * z.C + z.r)), scale = set1(rstd[p]);
    for (i64 i = p * n * z.Cp; i < (p + 1) * n * z.Cp; i += W)
      store(d_digits + i, scale * (load(d_digits + i) - load(out_digits + i) * mean));
    for (i64 i = p * z.Rp; i < (p + 1) * z.Rp; i += W)
      store(d_rest + i, scale * (load(d_rest + i) - load(out_rest + i) * mean));
  }
  sum_digits(z, digits, rest, c.sum);
  gate_up<R>(z, w, digits, c);
  sum_digits(z, d_digits, d_rest, c.d_sum);
  const Segments channels{1, {0}, {z.C}}, both{2, {0, z.Cp}, {z.C, z.r}};
  symmetric_product<R>(per, {c.d_sum, S, R * S}, both, w.down_shared_t, {nullptr, 0, 0}, c.d_base, T, R * T);
  for (i64 q = 0; q < per; ++q)
    symmetric_product<R>(n, {d_digits + q * R * z.Cp, z.Cp, n * z.Cp}, channels, w.down_t, {c.d_base, 0, T},
                         c.dh + q * R * z.Fp, z.Fp, n * z.Fp);
  for (i64 p = 0; p < n; ++p) {
    for (i64 f = 0; f < z.Fp; f += W) {
      V h_sum = set1(0.0f), g_sum = h_sum, u_sum = h_sum;
      for (i64 d = 0; d < n; ++d) {
        float* u = c.u + (p * n + d) * 2 * z.Fp + f;
        const V up = load(u + z.Fp), dh = load(c.dh + (p * n + d) * z.Fp + f);
        const Silu si = silu(load(u));
        const V h = si.value * up, du = dh * si.value, dg = dh * up * si.slope;
        store(c.h + (p * n + d) * z.Fp + f, h);
        store(u, dg);
        store(u + z.Fp, du);
        h_sum = h_sum + h;
        g_sum = g_sum + dg;
        u_sum = u_sum + du;
      }
      store(c.h_sum + p * T + f, h_sum);
      store(c.du_sum + p * 2 * T + f, g_sum);
      store(c.du_sum + p * 2 * T + T + f, u_sum);
    }
    for (i64 f = z.Fp; f < T; f += W) {
      const V up = load(c.base + p * 2 * T + T + f), dh = load(c.d_base + p * T + f);
      const Silu si = silu(load(c.base + p * 2 * T + f));
      store(c.h_sum + p * T + f, si.value * up);
      store(c.du_sum + p * 2 * T + f, dh * up * si.slope);
      store(c.du_sum + p * 2 * T + T + f, dh * si.value);
    }
  }
  outer_product(n * n, c.h, z.Fp, z.F, d_digits, z.Cp, z.Cp, g.down, z.Cp);
  outer_product(n, c.h_sum, T, z.F, c.d_sum, S, S, g.down_shared, S);
  outer_product(n, c.h_sum + z.Fp, T, z.s, c.d_sum, S, S, g.down_shared + z.F * S, S);
  for (i64 half = 0; half < 2; ++half) {
    outer_product(n * n, c.u + half * z.Fp, 2 * z.Fp, z.F, digits, z.Cp, z.Cp, g.gate_up + half * z.F * z.Cp, z.Cp);
    float* shared = g.gate_up_shared + half * (z.F + z.s) * S;
    outer_product(n, c.du_sum + half * T, 2 * T, z.F, c.sum, S, S, shared, S);
    outer_product(n, c.du_sum + half * T + z.Fp, 2 * T, z.s, c.sum, S, S, shared + z.F * S, S);
  }
  const Segments units{2, {0, z.Fp}, {z.F, z.F}}, all{4, {0, z.Fp, T, T + z.Fp}, {z.F, z.s, z.F, z.s}};
  symmetric_product<R>(per, {c.du_sum, 2 * T, R * 2 * T}, all, w.gate_up_shared_t, {nullptr, 0, 0}, c.base_out, S,
                       R * S);
  float* dz = c.dh;
  for (i64 q = 0; q < per; ++q)
    symmetric_product<R>(n, {c.u + q * R * 2 * z.Fp, 2 * z.Fp, n * 2 * z.Fp}, units, w.gate_up_t, {c.base_out, 0, S},
                         dz + q * R * z.Cp, z.Cp, n * z.Cp);
  for (i64 i = 0; i < n * n * z.Cp; i += W) add_to(d_digits + i, load(dz + i));
  for (i64 p = 0; p < n; ++p)
    for (i64 i = 0; i < z.Rp; i += W) add_to(d_rest + p * z.Rp + i, load(c.base_out + p * S + z.Cp + i));
}

template <int R>
static void symmetric_forward(const SymmetricSizes& z, const SymmetricLayer& layer, const float* x, float* mid,
                              float* out, float* token_rstd, float* channel_rstd, float* scratch) {
  symmetric_token_mix(z, layer, x, mid, token_rstd);
  const Chunk c = chunk_of(z, scratch);
  const i64 D = z.n * z.n * z.Cp, E = z.n * z.Rp, rest = z.L * z.n * z.Cp;
  for (i64 i = 0; i < z.n; ++i)
    channel_chunk<R>(z, layer, mid + i * D, mid + rest + i * E, out + i * D, out + rest + i * E,
                     channel_rstd ? channel_rstd + i * z.n : nullptr, c);
}

template <int R>
static void symmetric_backward(const SymmetricSizes& z, const SymmetricLayer& layer, const float* x, const float* mid,
                               const float* out, const float* token_rstd, const float* channel_rstd, float* d,
                               const SymmetricGradients& g, float* scratch) {
  const Chunk c = chunk_of(z, scratch);
  const i64 D = z.n * z.n * z.Cp, E = z.n * z.Rp, rest = z.L * z.n * z.Cp;
  for (i64 i = 0; i < z.n; ++i)
    channel_chunk_backward<R>(z, layer, mid + i * D, mid + rest + i * E, out + i * D, out + rest + i * E,
                              channel_rstd + i * z.n, d + i * D, d + rest + i * E, g, c);
  token_mix_backward(z, layer, x, mid, token_rstd, d, g.mixer);
}

template <int R>
static const SymmetricKernels* symmetric_set() {
  static constexpr SymmetricKernels set{RTM_NAME, W, symmetric_forward<R>, symmetric_backward<R>, chunk_size};
  return &set;
}

static const SymmetricKernels* symmetric_kernels(i64 n) {
  if (n == 9) return symmetric_set<W == 16 ? 9 : 3>();
  return n == 25 ? symmetric_set<5>() : symmetric_set<4>();
}

}  // namespace rtm::RTM_ISA
