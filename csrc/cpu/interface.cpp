#include "interface.h"

#include <stdexcept>
#include <string>

#include "executor.h"
#include "symmetric_executor.h"

namespace rtm {
extern const char* const kSources;  // written by setup.py
}

namespace {

using rtm::i64;

thread_local std::string text;  // what the last call of this thread handed out

template <class F>
const char* guarded(const F& f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    text = error.what();
  } catch (...) {
    text = "an unknown error";
  }
  return text.c_str();
}

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

rtm::Format format_named(const std::string& precision) {
  if (precision == "float32") return rtm::Format::float32;
  if (precision == "bfloat16") return rtm::Format::bfloat16;
  require(precision == "int8", "precision=" + precision + " is not allowed: float32, bfloat16, int8");
  return rtm::Format::int8;
}

const rtm::Kernels* kernels_named(const std::string& isa, const std::string& precision) {
  for (const rtm::Kernels* k : rtm::supported_kernels(format_named(precision)))
    if (isa == k->name) return k;
  throw std::invalid_argument("isa=" + isa + " does not run in " + precision + " on this processor");
}

// Adds the steps of a tape whose latent numbers are all in [0, latents], where `latents` stands for x.
template <class Executor>
void add_steps(Executor& executor, const i64* at, i64 steps) {
  const auto terms = [&] {
    const i64 n = *at++;
    std::vector<i64> found(at, at + n);
    at += n;
    for (i64 i : found) require(i >= 0 && i <= executor.latents(), "the tape reads a latent that is not there");
    return found;
  };
  for (i64 i = 0; i < steps; ++i) {
    const i64 dst = *at++, stack = *at++;
    require(dst >= 0 && dst < executor.latents() && stack >= 0, "the tape writes a latent that is not there");
    std::vector<i64> state = terms(), inject = terms();
    executor.add_step({dst, stack, std::move(state), std::move(inject)});
  }
}

rtm::Buffer copy(const float* values, i64 count) {
  rtm::Buffer buffer(count);
  std::copy_n(values, count, buffer.get());
  return buffer;
}

rtm::PackedLayer packed(const rtm::Kernels& k, i64 D, const rtm_layer& w) {
  rtm::PackedLayer packed;
  rtm::Layer& layer = packed.layer;
  layer.eps = static_cast<float>(w.eps);
  layer.norm_hidden = w.norm_hidden;
  if (w.mixer_gate_up) {
    packed.mixer = rtm::pack_mixer(k, w.reduced, w.mixer_gate_up, w.mixer_down, w.mixer_F, w.L);
    layer.mixer = packed.mixer.view();
  }
  if (w.qkv) {
    packed.qkv = rtm::pack_linear(k, w.reduced, w.qkv, D, D, 3);
    packed.out = rtm::pack_linear(k, w.reduced, w.out, D, D);
    if (w.cos) {
      packed.cos = copy(w.cos, w.L * (D / w.heads));
      packed.sin = copy(w.sin, w.L * (D / w.heads));
    }
    layer.attends = true;
    layer.attention = {packed.qkv.view(), packed.out.view(), w.heads,          D / w.heads,
                       w.causal,          w.qk_norm,         packed.cos.get(), packed.sin.get()};
  }
  if (w.conv) {
    const i64 W = k.width, taps = w.conv_grid ? w.conv_width * w.conv_width : w.conv_width;
    packed.conv = rtm::Buffer(rtm::round_up(w.F, W) * taps);
    packed.conv_bias = rtm::Buffer(rtm::round_up(w.F, W));
    std::copy_n(w.conv_bias, w.F, packed.conv_bias.get());
    for (i64 f = 0; f < w.F; ++f)
      for (i64 t = 0; t < taps; ++t) packed.conv.get()[(f / W * taps + t) * W + f % W] = w.conv[f * taps + t];
    layer.conv = {packed.conv.get(), packed.conv_bias.get(), w.conv_width, w.prefix, w.conv_grid};
  }
  packed.channel = rtm::pack_channel(k, w.reduced && !w.conv, w.gate_up, w.down, w.F, D);
  layer.channel = packed.channel.view();
  return packed;
}

rtm::Executor& native(void* model) { return *static_cast<rtm::Executor*>(model); }

std::vector<float*> pointers(float* const* all, i64 count) { return {all, all + count}; }

rtm::SymmetricExecutor& symmetric(void* model) { return *static_cast<rtm::SymmetricExecutor*>(model); }

rtm::SymmetricSizes named(const i64* s) {
  const i64 n = s[0];
  require(n == 4 || n == 9 || n == 16 || n == 25, "n=" + std::to_string(n) + " is not allowed: 4, 9, 16, 25");
  return {n, n == 4 ? 2 : n == 9 ? 3 : n == 16 ? 4 : 5, n * n, s[1], s[2], s[3], s[4], s[5], s[6], 0, 0, 0, 0};
}

rtm::SymmetricTensors tensors(float* const* p) { return {p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9]}; }

}  // namespace

const char* rtm_sources(void) { return rtm::kSources; }

const char* rtm_isas(const char* precision) {
  std::string names;
  guarded([&] {
    for (const rtm::Kernels* k : rtm::supported_kernels(format_named(precision))) names.append(k->name) += ',';
  });
  text = names;
  return text.c_str();
}

void rtm_set_team(void (*team)(void (*)(void*), void*, unsigned, unsigned)) { rtm::team = team; }

const char* rtm_native_new(const char* isa, const char* precision, i64 D, i64 latents, const i64* tape, i64 steps,
                           void** model) {
  return guarded([&] {
    auto made = std::make_unique<rtm::Executor>(kernels_named(isa, precision), D, latents);
    add_steps(*made, tape, steps);
    *model = made.release();
  });
}

void rtm_native_free(void* model) { delete &native(model); }

const char* rtm_native_add_layer(void* model, i64 stack, const rtm_layer* layer) {
  return guarded([&] {
    const bool mixes = layer->mixer_gate_up || layer->qkv || layer->conv;
    require(mixes && !(layer->mixer_gate_up && (layer->qkv || layer->conv)), "a layer needs one mixer, or a convolution");
    native(model).add_layer(stack, packed(native(model).kernels(), native(model).hidden_size(), *layer));
  });
}

const char* rtm_native_set_heads(void* model, i64 output, i64 N, i64 tokens, i64 prefix, const float* weight,
                                 const float* bias) {
  return guarded([&] {
    const rtm::Kernels& k = native(model).kernels();
    rtm::PackedHeads heads{rtm::pack_linear(k, false, weight, N, native(model).hidden_size()),
                           rtm::Buffer(rtm::round_up(N, 2 * k.width)), output, N, tokens, prefix};
    std::copy_n(bias, N, heads.bias.get());
    native(model).set_heads(std::move(heads));
  });
}

const char* rtm_native_run(void* model, float* const* latents, const float* x, i64 B, i64 L, i64 begin, i64 end,
                           i64 threads) {
  return guarded([&] {
    native(model).run(pointers(latents, native(model).latents()), x, B, L, begin, end, threads);
  });
}

const char* rtm_native_act_step(void* model, float* const* latents, const float* x, i64 B, i64 L, float* logits,
                                std::int32_t* answers, bool* finite, float* change, i64 threads) {
  return guarded([&] {
    native(model).act_step(pointers(latents, native(model).latents()), x, B, L, {logits, answers, finite, change},
                           threads);
  });
}

const char* rtm_symmetric_new(const char* isa, const i64* sizes, i64 latents, double eps, const i64* tape, i64 steps,
                              void** model) {
  return guarded([&] {
    const rtm::SymmetricSizes z = named(sizes);
    const rtm::SymmetricKernels* kernels = rtm::symmetric_kernels(isa, z.n);
    require(kernels, std::string("isa=") + isa + " does not run on this processor");
    auto made = std::make_unique<rtm::SymmetricExecutor>(kernels, z, latents, static_cast<float>(eps));
    add_steps(*made, tape, steps);
    *model = made.release();
  });
}

void rtm_symmetric_free(void* model) { delete &symmetric(model); }

i64 rtm_symmetric_state(void* model) { return symmetric(model).sizes().state(); }

i64 rtm_symmetric_saved(void* model, i64 begin, i64 end) { return symmetric(model).saved_size(begin, end); }

const char* rtm_symmetric_set_layer(void* model, i64 stack, i64 layer, float* const* weights) {
  return guarded([&] { symmetric(model).set_layer(stack, layer, tensors(weights)); });
}

const char* rtm_symmetric_sort(void* model, const float* x, i64 B, float* sorted, i64 threads) {
  return guarded([&] { symmetric(model).sort(x, B, sorted, threads); });
}

const char* rtm_symmetric_unsort(void* model, const float* sorted, i64 B, float* x, i64 threads) {
  return guarded([&] { symmetric(model).unsort(sorted, B, x, threads); });
}

const char* rtm_symmetric_forward(void* model, float* const* latents, const float* x, i64 B, i64 begin, i64 end,
                                  float* saved, i64 threads) {
  return guarded([&] {
    symmetric(model).forward(pointers(latents, symmetric(model).latents()), x, B, begin, end, saved, threads);
  });
}

const char* rtm_symmetric_backward(void* model, float* const* latents, float* dx, const float* saved, i64 B, i64 begin,
                                   i64 end, float* const* weights, i64 layers, i64 threads) {
  return guarded([&] {
    require(layers == symmetric(model).layers(), "gradients of every layer are needed");
    std::vector<rtm::SymmetricTensors> grads;
    for (i64 l = 0; l < layers; ++l) grads.push_back(tensors(weights + 10 * l));
    symmetric(model).backward(pointers(latents, symmetric(model).latents()), dx, saved, B, begin, end, grads, threads);
  });
}
