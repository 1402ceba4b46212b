// One layer of random weights, packed for a kernel set: what the drivers of the CPU kernels share.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "executor.h"

using rtm::i64;
using Floats = std::vector<float>;

inline std::mt19937 engine(0);

inline Floats randoms(i64 n, float scale) {
  std::normal_distribution<float> normal(0.0f, scale);
  Floats values(n);
  for (float& v : values) v = normal(engine);
  return values;
}

struct Case {
  i64 L, D, F, mixer_F, heads;  // heads = 0: an MLP mixer
  bool norm_hidden, causal;
  i64 conv = 0, prefix = 0;  // width of a convolution, over a grid without heads
};

inline const std::vector<Case> kCases = {
    {1, 1, 1, 1, 0, false, false}, {7, 24, 40, 16, 0, true, false},
    {97, 33, 520, 90, 0, false, false}, {101, 66, 70, 7, 0, true, false},
    {1, 2, 3, 0, 1, false, true}, {97, 36, 40, 0, 3, false, true},
    {131, 66, 50, 0, 3, false, false}
};

struct Weights {
  Floats gate_up, down, mixer_gate_up, mixer_down, qkv, out, cos, sin, heads, conv, conv_bias;
};

constexpr i64 kHeads = 37;  // odd, and more than one panel

inline Weights weights(const Case& c) {
  const float d = 1.0f / std::sqrt(float(c.D)), l = 1.0f / std::sqrt(float(c.L));
  Weights w{randoms(2 * c.F * c.D, d), randoms(c.F * c.D, 0.1f), {}, {}, {}, {}, {}, {}, randoms(kHeads * c.D, d), {}, {}};
  if (c.heads) {
    w.qkv = randoms(3 * c.D * c.D, d);
    w.out = randoms(c.D * c.D, d);
    w.cos = randoms(c.L * c.D / c.heads, 1.0f);
    w.sin = randoms(c.L * c.D / c.heads, 1.0f);
  } else if (!c.conv) {
    w.mixer_gate_up = randoms(2 * c.mixer_F * c.L, l);
    w.mixer_down = randoms(c.mixer_F * c.L, 0.1f);
  }
  if (c.conv) {
    w.conv = randoms(c.F * c.conv * (c.heads ? 1 : c.conv), 0.5f);
    w.conv_bias = randoms(c.F, 0.5f);
  }
  return w;
}

inline rtm::PackedLayer pack(const rtm::Kernels& k, const Case& c, const Weights& w) {
  rtm::PackedLayer p;
  const bool reduced = k.format != rtm::Format::float32;
  if (c.conv) {
    const i64 taps = c.heads ? c.conv : c.conv * c.conv, W = k.width;
    p.conv = rtm::Buffer(rtm::round_up(c.F, W) * taps);
    p.conv_bias = rtm::Buffer(rtm::round_up(c.F, W));
    for (i64 f = 0; f < c.F; ++f) p.conv_bias.get()[f] = w.conv_bias[f];
    for (i64 i = 0; i < c.F * taps; ++i) p.conv.get()[(i / taps / W * taps + i % taps) * W + i / taps % W] = w.conv[i];
    p.layer.conv = {p.conv.get(), p.conv_bias.get(), c.conv, c.prefix, !c.heads};
  }
  p.channel = rtm::pack_channel(k, reduced && !c.conv, w.gate_up.data(), w.down.data(), c.F, c.D);
  p.layer.channel = p.channel.view();
  p.layer.norm_hidden = c.norm_hidden;
  p.layer.eps = 1e-5f;
  if (!c.heads && c.conv) return p;
  if (!c.heads) {
    p.mixer = rtm::pack_mixer(k, reduced, w.mixer_gate_up.data(), w.mixer_down.data(), c.mixer_F, c.L);
    p.layer.mixer = p.mixer.view();
    return p;
  }
  p.qkv = rtm::pack_linear(k, reduced, w.qkv.data(), c.D, c.D, 3);
  p.out = rtm::pack_linear(k, reduced, w.out.data(), c.D, c.D);
  p.layer.attends = true;
  p.layer.attention = {p.qkv.view(),  p.out.view(), c.heads, c.D / c.heads, c.causal, /*qk_norm=*/true,
                       w.cos.data(), w.sin.data()};
  return p;
}
