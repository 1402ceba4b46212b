// One TRM pass (z <- f(z + (y + x)); y <- f(y + z)) with halting, on plain pointers: what the mutation test calls.
#include "executor.h"

#include <algorithm>

const rtm::Kernels* rtm::avx2_kernels() { return nullptr; }
const rtm::Kernels* rtm::avx512_kernels() { return nullptr; }

using rtm::i64;

extern "C" void solve(i64 B, i64 L, i64 D, i64 F, i64 mixer_F, i64 heads, i64 norm_hidden, i64 causal, i64 qk_norm,
                      const float* first, const float* second, const float* gate_up, const float* down,
                      const float* cos, const float* sin, float* y, float* z, const float* x, i64 policy, i64 mean,
                      const float* head, const float* bias, i64 min_steps, i64 max_steps, float tolerance, i64* steps,
                      i64* reason, float* logits) {
  const rtm::Kernels& k = *rtm::portable_kernels();
  rtm::PackedLayer p;
  p.channel = rtm::pack_channel(k, gate_up, down, F, D);
  p.layer.channel = p.channel.view();
  p.layer.norm_hidden = norm_hidden;
  p.layer.eps = 1e-5f;
  if (heads) {  // `first` and `second` are qkv and the output projection, else the mixer's gate_up and down
    p.qkv = rtm::pack_linear(k, first, D, D, 3);
    p.out = rtm::pack_linear(k, second, D, D);
    p.layer.attends = true;
    p.layer.attention = {p.qkv.get(), p.out.get(), heads, D / heads, causal != 0, qk_norm != 0, cos, sin};
  } else {
    p.mixer = rtm::pack_mixer(k, first, second, mixer_F, L);
    p.layer.mixer = p.mixer.view();
  }
  rtm::Executor executor(&k, D, 2);
  executor.add_layer(0, std::move(p));
  executor.add_step({1, 0, {1}, {0, 2}});
  executor.add_step({0, 0, {0}, {1}});
  const rtm::Halting halting{static_cast<rtm::Halting::Policy>(policy), mean != 0, head, bias, head ? 2 : 0,
                             min_steps, max_steps, tolerance};
  executor.solve({y, z}, x, B, L, 0, halting, {steps, reason, logits});
}
