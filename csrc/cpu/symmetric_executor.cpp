#include "symmetric_executor.h"

namespace rtm {

namespace {

constexpr i64 kGroups = 8;  // samples whose weight gradients are summed on their own, so that no bit depends on threads

SymmetricSizes padded(SymmetricSizes z, i64 W) {
  z.Cp = round_up(z.C, W), z.Rp = round_up(z.r, W), z.Fp = round_up(z.F, W), z.Sp = round_up(z.s, W);
  return z;
}

void add(const float* from, i64 n, float* to) {
  for (i64 i = 0; i < n; ++i) to[i] += from[i];
}

// Rows of a weight that belong together: their number and where they go in a padded row.
struct Part {
  i64 first, size, at;
};

}  // namespace

SymmetricExecutor::SymmetricExecutor(const SymmetricKernels* kernels, SymmetricSizes sizes, i64 latents, float eps)
    : kernels_(kernels), z_(padded(sizes, kernels->width)), latents_(latents), eps_(eps) {}

i64 SymmetricExecutor::layers() const {
  i64 count = 0;
  for (const auto& stack : stacks_) count += static_cast<i64>(stack.size());
  return count;
}

i64 SymmetricExecutor::first_layer(i64 stack) const {
  i64 count = 0;
  for (i64 i = 0; i < stack; ++i) count += static_cast<i64>(stacks_[i].size());
  return count;
}

void SymmetricExecutor::set_layer(i64 stack, i64 index, const SymmetricTensors& t) {
  if (stack >= static_cast<i64>(stacks_.size())) stacks_.resize(stack + 1);
  if (index >= static_cast<i64>(stacks_[stack].size())) stacks_[stack].resize(index + 1);
  const SymmetricSizes& z = z_;
  const i64 W = kernels_->width, C = z.C, r = z.r, F = z.F, s = z.s, K = z.copies * 6;
  Packed& packed = stacks_[stack][index];
  std::vector<float>& out = packed.weights;
  std::vector<i64> starts;
  out.clear();
  const auto begin = [&] { starts.push_back(static_cast<i64>(out.size())); };
  const auto copy = [&](const float* from, i64 n) {
    begin();
    out.insert(out.end(), from, from + n);
  };
  // panels of value(k, n) for k in [0, K); columns [0, N) as the parts say
  const auto panels = [&](i64 depth, const std::vector<Part>& parts, i64 width, const auto& value) {
    begin();
    const i64 base = static_cast<i64>(out.size());
    out.resize(base + depth * width);
    for (const Part& p : parts)
      for (i64 j = 0; j < p.size; ++j) {
        const i64 n = p.at + j;
        float* column = out.data() + base + n / W * depth * W + n % W;
        for (i64 k = 0; k < depth; ++k) column[k * W] = value(k, p.first + j);
      }
  };
  copy(t.gate, K), copy(t.up, K), copy(t.down, K);
  copy(t.gate_still, z.still), copy(t.up_still, z.still), copy(t.down_still, z.still);
  const std::vector<Part> channels{{0, C, 0}}, channels_all{{0, C, 0}, {C, r, z.Cp}};
  const std::vector<Part> units{{0, F, 0}}, units_all{{0, F, 0}, {F, s, z.Fp}};
  const i64 T = z.Fp + z.Sp, S = z.Cp + z.Rp;
  const std::vector<Part> gates_all{{0, F, 0}, {F, s, z.Fp}, {F + s, F, T}, {2 * F + s, s, T + z.Fp}};
  panels(C, units, z.Fp, [&](i64 k, i64 n) { return t.gate_up[n * C + k]; });
  panels(C, units, z.Fp, [&](i64 k, i64 n) { return t.gate_up[(F + n) * C + k]; });
  panels(C + r, gates_all, 2 * T, [&](i64 k, i64 n) { return t.gate_up_shared[n * (C + r) + k]; });
  panels(F, channels, z.Cp, [&](i64 k, i64 n) { return t.down_t[k * C + n]; });
  panels(F + s, channels_all, S, [&](i64 k, i64 n) { return t.down_shared_t[k * (C + r) + n]; });
  panels(2 * F, channels, z.Cp, [&](i64 k, i64 n) { return t.gate_up[k * C + n]; });
  panels(2 * (F + s), channels_all, S, [&](i64 k, i64 n) { return t.gate_up_shared[k * (C + r) + n]; });
  panels(C, units, z.Fp, [&](i64 k, i64 n) { return t.down_t[n * C + k]; });
  panels(C + r, units_all, T, [&](i64 k, i64 n) { return t.down_shared_t[n * (C + r) + k]; });
  const float* at = out.data();
  const auto start = [&](i64 i) { return at + starts[i]; };
  packed.layer.eps = eps_;
  packed.layer.mixer = {start(0), start(1), start(2), start(3), start(4), start(5)};
  packed.layer.channel = {
      {start(6), C, z.Fp / W},     {start(7), C, z.Fp / W},           {start(8), C + r, 2 * T / W},
      {start(9), F, z.Cp / W},     {start(10), F + s, S / W},         {start(11), 2 * F, z.Cp / W},
      {start(12), 2 * (F + s), S / W}, {start(13), C, z.Fp / W},      {start(14), C + r, T / W}};
}

void SymmetricExecutor::sort(const float* x, i64 B, float* sorted, i64 threads) const {
  const SymmetricSizes& z = z_;
  const i64 D = z.n * z.C + z.r;
  parallel_for(threads, B, [&](i64 first, i64 last, i64) {
    for (i64 b = first; b < last; ++b) {
      float* out = sorted + b * z.state();
      float* rest = out + z.L * z.n * z.Cp;
      std::fill_n(out, z.state(), 0.0f);
      for (i64 l = 0; l < z.L; ++l) {
        const float* from = x + (b * z.L + l) * D;
        for (i64 d = 0; d < z.n; ++d)
          for (i64 c = 0; c < z.C; ++c) out[(l * z.n + d) * z.Cp + c] = from[c * z.n + d];
        std::copy_n(from + z.n * z.C, z.r, rest + l * z.Rp);
      }
    }
  });
}

void SymmetricExecutor::unsort(const float* sorted, i64 B, float* x, i64 threads) const {
  const SymmetricSizes& z = z_;
  const i64 D = z.n * z.C + z.r;
  parallel_for(threads, B, [&](i64 first, i64 last, i64) {
    for (i64 b = first; b < last; ++b) {
      const float* from = sorted + b * z.state();
      const float* rest = from + z.L * z.n * z.Cp;
      for (i64 l = 0; l < z.L; ++l) {
        float* to = x + (b * z.L + l) * D;
        for (i64 d = 0; d < z.n; ++d)
          for (i64 c = 0; c < z.C; ++c) to[c * z.n + d] = from[(l * z.n + d) * z.Cp + c];
        std::copy_n(rest + l * z.Rp, z.r, to + z.n * z.C);
      }
    }
  });
}

i64 SymmetricExecutor::saved_size(i64 begin, i64 end) const {
  i64 size = 0;
  for (i64 i = begin; i < end; ++i)
    size += z_.state() + static_cast<i64>(stacks_[tape_[i].stack].size()) * layer_size();
  return size;
}

void SymmetricExecutor::forward(const std::vector<float*>& latents, const float* x, i64 B, i64 begin, i64 end,
                                float* saved, i64 threads) const {
  const i64 state = z_.state(), per_sample = saved ? saved_size(begin, end) : 0;
  std::atomic<i64> next{0};
  parallel_for(threads, std::min(B, threads), [&](i64, i64, i64) {
    std::vector<float> scratch(kernels_->scratch_size(z_)), own(saved ? 0 : 2 * state), injected(state);
    for (i64 b = next++; b < B; b = next++) {
      const auto pointer = [&](i64 i) { return (i == latents_ ? x : latents[i]) + b * state; };
      float* at = saved ? saved + b * per_sample : nullptr;
      for (i64 i = begin; i < end; ++i) {
        const Step& step = tape_[i];
        float* in = saved ? at : own.data();
        const auto sum = [&](const std::vector<i64>& terms, float* out) {  // from left to right
          std::copy_n(pointer(terms[0]), state, out);
          for (std::size_t t = 1; t < terms.size(); ++t) add(pointer(terms[t]), state, out);
        };
        sum(step.state, in);
        if (!step.inject.empty()) {
          sum(step.inject, injected.data());
          add(injected.data(), state, in);
        }
        float* dst = latents[step.dst] + b * state;
        const float* source = in;
        for (const Packed& packed : stacks_[step.stack]) {
          float* mid = saved ? at + state : own.data() + state;
          float* out = saved ? at + 2 * state : dst;
          float* token_rstd = saved ? at + 3 * state : nullptr;
          float* channel_rstd = saved ? token_rstd + z_.lanes() : nullptr;
          kernels_->forward(z_, packed.layer, source, mid, out, token_rstd, channel_rstd, scratch.data());
          if (saved) at += layer_size();
          source = out;
        }
        if (!saved) continue;
        std::copy_n(source, state, dst);
        at += state;
      }
    }
  });
}

i64 SymmetricExecutor::gradient_size() const {
  const SymmetricSizes& z = z_;
  const i64 S = z.Cp + z.Rp;
  return 3 * z.F * z.Cp + 3 * (z.F + z.s) * S + (z.copies * 18 + z.still * 3) * kernels_->width;
}

SymmetricGradients SymmetricExecutor::gradients(float* at) const {
  const SymmetricSizes& z = z_;
  const i64 S = z.Cp + z.Rp;
  SymmetricGradients g{};
  g.gate_up = at, at += 2 * z.F * z.Cp;
  g.gate_up_shared = at, at += 2 * (z.F + z.s) * S;
  g.down = at, at += z.F * z.Cp;
  g.down_shared = at, at += (z.F + z.s) * S;
  g.mixer = at;
  return g;
}

void SymmetricExecutor::backward(const std::vector<float*>& d, float* dx, const float* saved, i64 B, i64 begin, i64 end,
                                 const std::vector<SymmetricTensors>& grads, i64 threads) const {
  const SymmetricSizes& z = z_;
  const i64 state = z.state(), per_sample = saved_size(begin, end), size = gradient_size(), count = layers();
  const i64 groups = std::min(B, kGroups);
  std::vector<float> sums(groups * count * size);
  std::atomic<i64> next{0};
  parallel_for(threads, std::min(groups, threads), [&](i64, i64, i64) {
    std::vector<float> scratch(kernels_->scratch_size(z_)), g(state);
    for (i64 group = next++; group < groups; group = next++)
      for (i64 b = part(B, groups, group); b < part(B, groups, group + 1); ++b) {
        const float* at = saved + (b + 1) * per_sample;
        for (i64 i = end - 1; i >= begin; --i) {
          const Step& step = tape_[i];
          const auto& stack = stacks_[step.stack];
          const i64 depth = static_cast<i64>(stack.size());
          at -= state + depth * layer_size();
          float* own = d[step.dst] + b * state;
          std::copy_n(own, state, g.data());
          std::fill_n(own, state, 0.0f);
          for (i64 l = depth - 1; l >= 0; --l) {
            const float* here = at + state + l * layer_size();
            const float* input = l ? here - layer_size() + state : at;
            const float* token_rstd = here + 2 * state;
            float* sum = sums.data() + (group * count + first_layer(step.stack) + l) * size;
            kernels_->backward(z_, stack[l].layer, input, here, here + state, token_rstd, token_rstd + z.lanes(),
                               g.data(), gradients(sum), scratch.data());
          }
          const auto give = [&](i64 n) { add(g.data(), state, (n == latents_ ? dx : d[n]) + b * state); };
          for (i64 n : step.state) give(n);
          for (i64 n : step.inject) give(n);
        }
      }
  });
  const i64 W = kernels_->width, S = z.Cp + z.Rp;
  for (i64 l = 0; l < count; ++l) {
    float* total = sums.data() + l * size;
    for (i64 group = 1; group < groups; ++group)
      add(sums.data() + (group * count + l) * size, size, total);
    const SymmetricGradients g = gradients(total);
    const SymmetricTensors& out = grads[l];
    const auto narrow = [&](const float* from, i64 rows, float* to) {
      for (i64 i = 0; i < rows; ++i) std::copy_n(from + i * z.Cp, z.C, to + i * z.C);
    };
    const auto narrow_shared = [&](const float* from, i64 rows, float* to) {
      for (i64 i = 0; i < rows; ++i) {
        std::copy_n(from + i * S, z.C, to + i * (z.C + z.r));
        std::copy_n(from + i * S + z.Cp, z.r, to + i * (z.C + z.r) + z.C);
      }
    };
    narrow(g.gate_up, 2 * z.F, out.gate_up);
    narrow_shared(g.gate_up_shared, 2 * (z.F + z.s), out.gate_up_shared);
    narrow(g.down, z.F, out.down_t);
    narrow_shared(g.down_shared, z.F + z.s, out.down_shared_t);
    const float* lane = g.mixer;
    const auto fold = [&](float* to, i64 n) {
      for (i64 i = 0; i < n; ++i, lane += W) {
        to[i] = 0;
        for (i64 j = 0; j < W; ++j) to[i] += lane[j];
      }
    };
    fold(out.gate, z.copies * 6), fold(out.up, z.copies * 6), fold(out.down, z.copies * 6);
    fold(out.gate_still, z.still), fold(out.up_still, z.still), fold(out.down_still, z.still);
  }
}

}  // namespace rtm
