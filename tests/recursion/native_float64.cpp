// Every kernel of every float32 instruction set of this processor against a layer in float64, at odd sizes. Needs no
// torch, so that it can be compiled for another processor and run in an emulator. Prints `name error` for each set and
// exits with 1 when an error is above 2e-6 of the norm.
#include <algorithm>
#include <cstdio>

#include "native_layer.h"

namespace {

using Doubles = std::vector<double>;

// y[n] = w[N, K] x[K]
Doubles times(const float* w, i64 N, const Doubles& x) {
  Doubles y(N);
  const i64 K = static_cast<i64>(x.size());
  for (i64 n = 0; n < N; ++n)
    for (i64 k = 0; k < K; ++k) y[n] += double(w[n * K + k]) * x[k];
  return y;
}

// x + down (silu(gate x) * up x)
Doubles plus_swiglu(const Floats& gate_up, const Floats& down, i64 F, const Doubles& x) {
  const Doubles h = times(gate_up.data(), 2 * F, x);
  Doubles inner(F);
  for (i64 f = 0; f < F; ++f) inner[f] = h[f] / (1 + std::exp(-h[f])) * h[F + f];
  Doubles y = times(down.data(), static_cast<i64>(x.size()), inner);
  for (size_t i = 0; i < x.size(); ++i) y[i] += x[i];
  return y;
}

void normalise(double* x, i64 n, i64 stride = 1) {
  double squares = 0;
  for (i64 i = 0; i < n; ++i) squares += x[i * stride] * x[i * stride];
  const double scale = 1 / std::sqrt(squares / double(n) + double(1e-5f));
  for (i64 i = 0; i < n; ++i) x[i * stride] *= scale;
}

void rotate(const Case& c, const Weights& w, double* x, i64 l) {
  const i64 n = c.D / c.heads, half = n / 2;
  normalise(x, n);
  const Doubles old(x, x + n);
  for (i64 i = 0; i < n; ++i) {
    const double other = i < half ? -old[i + half] : old[i - half];
    x[i] = old[i] * w.cos[l * n + i] + other * w.sin[l * n + i];
  }
}

// h + out softmax(q k^T) v, rows of h [L, D]
std::vector<Doubles> attended(const Case& c, const Weights& w, const std::vector<Doubles>& h) {
  const i64 n = c.D / c.heads;
  std::vector<Doubles> qkv, result = h;
  for (i64 l = 0; l < c.L; ++l) {
    qkv.push_back(times(w.qkv.data(), 3 * c.D, h[l]));
    for (i64 i = 0; i < 2 * c.heads; ++i) rotate(c, w, qkv[l].data() + i * n, l);
  }
  for (i64 l = 0; l < c.L; ++l) {
    Doubles mixed(c.D);
    for (i64 head = 0; head < c.heads; ++head) {
      Doubles p(c.causal ? l + 1 : c.L);
      double total = 0, top = -1e300;
      for (size_t m = 0; m < p.size(); ++m) {
        for (i64 i = 0; i < n; ++i) p[m] += qkv[l][head * n + i] * qkv[m][c.D + head * n + i] / std::sqrt(double(n));
        top = std::max(top, p[m]);
      }
      for (double& s : p) total += s = std::exp(s - top);
      for (size_t m = 0; m < p.size(); ++m)
        for (i64 i = 0; i < n; ++i) mixed[head * n + i] += p[m] / total * qkv[m][2 * c.D + head * n + i];
    }
    const Doubles o = times(w.out.data(), c.D, mixed);
    for (i64 d = 0; d < c.D; ++d) result[l][d] += o[d];
  }
  return result;
}

// The layer applied to a + b, and the logits of the heads: [L, D] and [L, kHeads], one after the other.
Doubles exact(const Case& c, const Weights& w, const Floats& a, const Floats& b) {
  std::vector<Doubles> h(c.L, Doubles(c.D));
  for (i64 i = 0; i < c.L * c.D; ++i) h[i / c.D][i % c.D] = double(a[i]) + b[i];
  if (c.heads) {
    h = attended(c, w, h);
  } else {
    for (i64 d = 0; d < c.D; ++d) {
      Doubles column(c.L);
      for (i64 l = 0; l < c.L; ++l) column[l] = h[l][d];
      column = plus_swiglu(w.mixer_gate_up, w.mixer_down, c.mixer_F, column);
      if (!c.norm_hidden) normalise(column.data(), c.L);
      for (i64 l = 0; l < c.L; ++l) h[l][d] = column[l];
    }
  }
  Doubles y, logits;
  for (Doubles& row : h) {
    if (c.heads || c.norm_hidden) normalise(row.data(), c.D);
    row = plus_swiglu(w.gate_up, w.down, c.F, row);
    normalise(row.data(), c.D);
    y.insert(y.end(), row.begin(), row.end());
    const Doubles read = times(w.heads.data(), kHeads, row);
    logits.insert(logits.end(), read.begin(), read.end());
  }
  y.insert(y.end(), logits.begin(), logits.end());
  return y;
}

Floats computed(const rtm::Kernels& k, const Case& c, const Weights& w, const Floats& a, const Floats& b) {
  const rtm::PackedLayer p = pack(k, c, w);
  const float *state = a.data(), *inject = b.data();
  const rtm::Sources sources{&state, 1, &inject, 1};
  const rtm::Buffer scratch(k.scratch_size(p.layer, c.L, c.D));
  Floats work(c.L * c.D), y(c.L * c.D), logits(c.L * kHeads);
  const auto by_rows = [&](auto f) {
    for (i64 l = 0; l < c.L; l += rtm::kRowChunk) f(l, std::min(c.L, l + rtm::kRowChunk));
  };
  if (c.heads) {
    const rtm::HeadSizes size = k.head_sizes(p.layer, c.L);
    const rtm::Buffer query(size.query), key(size.key), value(size.value), mixed(c.L * c.D);
    const rtm::Heads heads{query.get(), key.get(), value.get(), mixed.get()};
    by_rows([&](i64 l, i64 end) {
      k.attention_project(p.layer, sources, work.data(), heads, c.L, c.D, l, end, scratch.get());
    });
    for (i64 head = 0; head < c.heads; ++head) k.attend(p.layer, heads, c.L, c.D, head, 0, c.L, scratch.get());
    by_rows([&](i64 l, i64 end) {
      k.attention_channel_mix(p.layer, mixed.get(), work.data(), y.data(), c.D, l, end, scratch.get());
    });
  } else {
    k.token_mix(p.layer, sources, work.data(), c.L, c.D, 0, rtm::ceil_div(c.D, 2 * k.width), scratch.get());
    by_rows([&](i64 l, i64 end) { k.channel_mix(p.layer, work.data(), y.data(), c.D, l, end, scratch.get()); });
  }
  const rtm::PackedLinear heads = rtm::pack_linear(k, false, w.heads.data(), kHeads, c.D);
  const rtm::Buffer bias(rtm::round_up(kHeads, 2 * k.width));
  by_rows([&](i64 l, i64 end) {
    k.project(heads.view(), bias.get(), y.data(), logits.data(), c.D, kHeads, l, end, scratch.get());
  });
  y.insert(y.end(), logits.begin(), logits.end());
  return y;
}

}  // namespace

int main() {
  int wrong = 0;
  for (const rtm::Kernels* k : rtm::supported_kernels(rtm::Format::float32)) {
    double worst = 0;
    for (const Case& c : kCases) {
      const Weights w = weights(c);
      const Floats a = randoms(c.L * c.D, 1.0f), b = randoms(c.L * c.D, 1.0f);
      const Floats value = computed(*k, c, w, a, b);
      const Doubles truth = exact(c, w, a, b);
      double error = 0, size = 0;
      for (size_t i = 0; i < truth.size(); ++i) {
        error += std::pow(value[i] - truth[i], 2);
        size += std::pow(truth[i], 2);
      }
      worst = std::max(worst, std::sqrt(error / size));
    }
    std::printf("%s %.2g\n", k->name, worst);
    if (!(worst < 2e-6)) wrong = 1;
  }
  return wrong;
}
