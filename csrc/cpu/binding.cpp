// torch.classes.rtm_kernels.NativeModel: the executor as PyTorch sees it. Methods run without the GIL.
#include <Python.h>
#include <ATen/ops/empty.h>
#include <torch/custom_class.h>

#include "executor.h"
#include "symmetric_executor.h"

namespace rtm {
extern const char* const kSources;  // written by setup.py
}

namespace {

using at::Tensor;
using rtm::i64;

rtm::Format format_named(const std::string& precision) {
  if (precision == "float32") return rtm::Format::float32;
  if (precision == "bfloat16") return rtm::Format::bfloat16;
  TORCH_CHECK(precision == "int8", "precision=", precision, " is not allowed: float32, bfloat16, int8");
  return rtm::Format::int8;
}

const rtm::Kernels* kernels_named(const std::string& isa, const std::string& precision) {
  for (const rtm::Kernels* k : rtm::supported_kernels(format_named(precision)))
    if (isa == k->name) return k;
  TORCH_CHECK(false, "isa=", isa, " does not run in ", precision, " on this processor");
}

const float* data(const Tensor& t, const char* name) {
  TORCH_CHECK(t.device().is_cpu() && t.scalar_type() == at::kFloat && t.is_contiguous(), name,
              " must be a contiguous float32 tensor on the CPU");
  return t.const_data_ptr<float>();
}

class NativeModel : public torch::CustomClassHolder {
 public:
  NativeModel(const std::string& isa, const std::string& precision, i64 D, i64 latents)
      : executor_(kernels_named(isa, precision), D, latents) {}

  void add_mlp_layer(i64 stack, const Tensor& mixer_gate_up, const Tensor& mixer_down, const Tensor& gate_up,
                     const Tensor& down, bool norm_hidden, double eps, bool reduced) {
    const rtm::Kernels& k = executor_.kernels();
    rtm::PackedLayer packed;
    packed.mixer = rtm::pack_mixer(k, reduced, data(mixer_gate_up, "mixer gate_up"), data(mixer_down, "mixer down"),
                                   mixer_down.size(1), mixer_down.size(0));
    packed.layer.norm_hidden = norm_hidden;
    packed.layer.mixer = packed.mixer.view();
    add(stack, std::move(packed), gate_up, down, eps, reduced);
  }

  void add_attention_layer(i64 stack, const Tensor& qkv, const Tensor& out, const Tensor& gate_up, const Tensor& down,
                           i64 heads, bool causal, bool qk_norm, const std::optional<Tensor>& cos,
                           const std::optional<Tensor>& sin, const std::optional<Tensor>& conv,
                           const std::optional<Tensor>& conv_bias, i64 prefix, double eps, bool reduced) {
    const i64 D = executor_.hidden_size();
    rtm::PackedLayer packed;
    packed.qkv = rtm::pack_linear(executor_.kernels(), reduced, data(qkv, "qkv"), D, D, 3);
    packed.out = rtm::pack_linear(executor_.kernels(), reduced, data(out, "out"), D, D);
    if (cos && sin) {
      packed.cos = copy(*cos, "cos");
      packed.sin = copy(*sin, "sin");
    }
    packed.layer.attends = true;
    packed.layer.attention = {packed.qkv.view(), packed.out.view(), heads,            D / heads,
                              causal,           qk_norm,          packed.cos.get(), packed.sin.get()};
    if (conv && conv_bias) set_conv(packed, *conv, *conv_bias, prefix);
    add(stack, std::move(packed), gate_up, down, eps, reduced && !conv);
  }

  // A layer whose channel half has a convolution, and no mixer.
  void add_conv_layer(i64 stack, const Tensor& gate_up, const Tensor& down, const Tensor& weight, const Tensor& bias,
                      i64 prefix, double eps) {
    rtm::PackedLayer packed;
    set_conv(packed, weight, bias, prefix);
    add(stack, std::move(packed), gate_up, down, eps, false);
  }

  void add_step(i64 dst, i64 stack, std::vector<i64> state, std::vector<i64> inject) {
    executor_.add_step({dst, stack, std::move(state), std::move(inject)});
  }

  void run(const std::vector<Tensor>& latents, const Tensor& x, i64 begin, i64 end) {
    executor_.run(pointers(latents, x), data(x, "x"), x.size(0), x.size(1), begin, end);
  }

  // weight [N, D] and bias [N]; the first `tokens` rows are those of the vocabulary, for the positions from `prefix` on.
  void set_heads(i64 output, i64 tokens, i64 prefix, const Tensor& weight, const Tensor& bias) {
    const i64 N = weight.size(0);
    TORCH_CHECK(bias.numel() == N && weight.size(1) == executor_.hidden_size(), "heads must be [N, D] and [N]");
    rtm::PackedHeads heads{rtm::pack_linear(executor_.kernels(), false, data(weight, "weight"), N, weight.size(1)),
                           rtm::Buffer(rtm::round_up(N, 2 * executor_.kernels().width)), output, N, tokens, prefix};
    std::copy_n(data(bias, "bias"), N, heads.bias.get());
    executor_.set_heads(std::move(heads));
  }

  // Returns what was seen: logits [B, L, N], answers [B, S], finite [B], change [B].
  std::vector<Tensor> act_step(const std::vector<Tensor>& latents, const Tensor& x) {
    const rtm::PackedHeads& heads = executor_.heads();
    const i64 B = x.size(0), L = x.size(1), S = heads.tokens ? L - heads.prefix : 0;
    const std::vector<Tensor> t{at::empty({B, L, heads.N}, at::kFloat), at::empty({B, S}, at::kInt),
                                at::empty({B}, at::kBool), at::empty({B}, at::kFloat)};
    executor_.act_step(pointers(latents, x), data(x, "x"), B, L,
                       {t[0].mutable_data_ptr<float>(), t[1].mutable_data_ptr<std::int32_t>(),
                        t[2].mutable_data_ptr<bool>(), t[3].mutable_data_ptr<float>()});
    return t;
  }

 private:
  std::vector<float*> pointers(const std::vector<Tensor>& latents, const Tensor& x) const {
    TORCH_CHECK(static_cast<i64>(latents.size()) == executor_.latents(), "one tensor for each latent is needed");
    TORCH_CHECK(x.dim() == 3 && x.size(2) == executor_.hidden_size(), "x must be [B, L, D]");
    std::vector<float*> result;
    for (const Tensor& t : latents) {
      TORCH_CHECK(t.sizes() == x.sizes(), "latents must have the shape of x");
      result.push_back(const_cast<float*>(data(t, "latent")));
    }
    return result;
  }

  void add(i64 stack, rtm::PackedLayer packed, const Tensor& gate_up, const Tensor& down, double eps,
           bool reduced) {
    packed.channel = rtm::pack_channel(executor_.kernels(), reduced, data(gate_up, "gate_up"), data(down, "down"), down.size(1),
                                       down.size(0));
    packed.layer.channel = packed.channel.view();
    packed.layer.eps = static_cast<float>(eps);
    executor_.add_layer(stack, std::move(packed));
  }

  // weight [F, 1, k] or [F, 1, k, k] and bias [F].
  void set_conv(rtm::PackedLayer& packed, const Tensor& weight, const Tensor& bias, i64 prefix) const {
    const i64 F = weight.size(0), W = executor_.kernels().width, taps = weight.numel() / F;
    packed.conv = rtm::Buffer(rtm::round_up(F, W) * taps);
    packed.conv_bias = rtm::Buffer(rtm::round_up(F, W));
    for (i64 f = 0; f < F; ++f) {
      packed.conv_bias.get()[f] = data(bias, "conv bias")[f];
      for (i64 t = 0; t < taps; ++t)
        packed.conv.get()[(f / W * taps + t) * W + f % W] = data(weight, "conv weight")[f * taps + t];
    }
    packed.layer.conv = {packed.conv.get(), packed.conv_bias.get(), weight.size(-1), prefix, weight.dim() == 4};
  }

  static rtm::Buffer copy(const Tensor& t, const char* name) {
    rtm::Buffer buffer(t.numel());
    std::copy_n(data(t, name), t.numel(), buffer.get());
    return buffer;
  }

  rtm::Executor executor_;
};

// Programs whose stacks are symmetric layers; latents, x and gradients are [B, state] in the layout of the kernels.
class SymmetricModel : public torch::CustomClassHolder {
 public:
  // sizes: n, C, r, F, s, copies, still, as in `SymmetricSizes`
  SymmetricModel(const std::string& isa, const std::vector<i64>& sizes, i64 latents, double eps)
      : executor_(kernels(isa, sizes), named(sizes), latents, static_cast<float>(eps)) {}

  void add_step(i64 dst, i64 stack, std::vector<i64> state, std::vector<i64> inject) {
    executor_.add_step({dst, stack, std::move(state), std::move(inject)});
  }

  // The ten weights of `SymmetricTensors`.
  void set_layer(i64 stack, i64 layer, const std::vector<Tensor>& weights) {
    executor_.set_layer(stack, layer, tensors(weights));
  }

  Tensor sorted(const Tensor& x) const {
    TORCH_CHECK(x.dim() == 3 && x.size(1) == sizes().L && x.size(2) == width(), "x must be [B, L, D]");
    Tensor out = at::empty({x.size(0), sizes().state()}, at::kFloat);
    executor_.sort(data(x, "x"), x.size(0), out.mutable_data_ptr<float>());
    return out;
  }

  Tensor unsorted(const Tensor& x) const {
    Tensor out = at::empty({x.size(0), sizes().L, width()}, at::kFloat);
    executor_.unsort(state(x, "x", x.size(0)), x.size(0), out.mutable_data_ptr<float>());
    return out;
  }

  // Steps [begin, end) in place; what `backward` needs when asked to save it, else nothing.
  Tensor forward(const std::vector<Tensor>& latents, const Tensor& x, i64 begin, i64 end, bool save) const {
    const i64 B = x.size(0);
    Tensor saved = at::empty({B, save ? executor_.saved_size(begin, end) : 0}, at::kFloat);
    executor_.forward(states(latents, B), state(x, "x", B), B, begin, end,
                      save ? saved.mutable_data_ptr<float>() : nullptr);
    return saved;
  }

  // Gradients of the latents become those before the steps, that of x is added to, those of the weights are written.
  void backward(const std::vector<Tensor>& latents, const Tensor& x, const Tensor& saved, i64 begin, i64 end,
                const std::vector<std::vector<Tensor>>& weights) const {
    const i64 B = x.size(0);
    TORCH_CHECK(saved.dim() == 2 && saved.size(0) == B && saved.size(1) == executor_.saved_size(begin, end),
                "saved must be what forward returned for these steps");
    TORCH_CHECK(static_cast<i64>(weights.size()) == executor_.layers(), "gradients of every layer are needed");
    std::vector<rtm::SymmetricTensors> grads;
    for (const auto& layer : weights) grads.push_back(tensors(layer));
    executor_.backward(states(latents, B), state(x, "x", B), data(saved, "saved"), B, begin, end, grads);
  }

 private:
  static rtm::SymmetricSizes named(const std::vector<i64>& s) {
    TORCH_CHECK(s.size() == 7, "seven sizes are needed");
    const i64 box = s[0] == 4 ? 2 : s[0] == 9 ? 3 : s[0] == 16 ? 4 : 5;
    return {s[0], box, s[0] * s[0], s[1], s[2], s[3], s[4], s[5], s[6], 0, 0, 0, 0};
  }

  static const rtm::SymmetricKernels* kernels(const std::string& isa, const std::vector<i64>& sizes) {
    const i64 n = named(sizes).n;
    TORCH_CHECK(n == 4 || n == 9 || n == 16 || n == 25, "n=", n, " is not allowed: 4, 9, 16, 25");
    const rtm::SymmetricKernels* found = rtm::symmetric_kernels(isa, n);
    TORCH_CHECK(found, "isa=", isa, " does not run on this processor");
    return found;
  }

  const rtm::SymmetricSizes& sizes() const { return executor_.sizes(); }
  i64 width() const { return sizes().n * sizes().C + sizes().r; }

  float* state(const Tensor& t, const char* name, i64 B) const {
    TORCH_CHECK(t.dim() == 2 && t.size(0) == B && t.size(1) == sizes().state(), name, " must be [B, state]");
    return const_cast<float*>(data(t, name));
  }

  std::vector<float*> states(const std::vector<Tensor>& latents, i64 B) const {
    TORCH_CHECK(static_cast<i64>(latents.size()) == executor_.latents(), "one tensor for each latent is needed");
    std::vector<float*> result;
    for (const Tensor& t : latents) result.push_back(state(t, "latent", B));
    return result;
  }

  rtm::SymmetricTensors tensors(const std::vector<Tensor>& t) const {
    const rtm::SymmetricSizes& z = sizes();
    const i64 D = z.C + z.r, H = z.F + z.s, mixer = z.copies * 6;
    const std::vector<i64> counts{mixer,   mixer,         mixer,     z.still,     z.still,
                                  z.still, 2 * z.F * z.C, 2 * H * D, z.F * z.C, H * D};
    TORCH_CHECK(t.size() == counts.size(), "ten weights of a layer are needed");
    std::vector<float*> p;
    for (std::size_t i = 0; i < t.size(); ++i) {
      TORCH_CHECK(t[i].numel() == counts[i], "weight ", i, " must have ", counts[i], " numbers");
      p.push_back(const_cast<float*>(data(t[i], "weight")));
    }
    return {p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9]};
  }

  rtm::SymmetricExecutor executor_;
};

std::vector<std::string> isas(const std::string& precision) {
  std::vector<std::string> names;
  for (const rtm::Kernels* k : rtm::supported_kernels(format_named(precision))) names.push_back(k->name);
  return names;
}

TORCH_LIBRARY(rtm_kernels_native, m) {
  m.def("isas(str precision) -> str[]", &isas);
  m.class_<NativeModel>("NativeModel")
      .def(torch::init<const std::string&, const std::string&, i64, i64>())
      .def("add_mlp_layer", &NativeModel::add_mlp_layer)
      .def("add_conv_layer", &NativeModel::add_conv_layer)
      .def("add_attention_layer", &NativeModel::add_attention_layer)
      .def("add_step", &NativeModel::add_step)
      .def("set_heads", &NativeModel::set_heads)
      .def("run", &NativeModel::run)
      .def("act_step", &NativeModel::act_step);
  m.class_<SymmetricModel>("SymmetricModel")
      .def(torch::init<const std::string&, const std::vector<i64>&, i64, double>())
      .def("add_step", &SymmetricModel::add_step)
      .def("set_layer", &SymmetricModel::set_layer)
      .def("sorted", &SymmetricModel::sorted)
      .def("unsorted", &SymmetricModel::unsorted)
      .def("forward", &SymmetricModel::forward)
      .def("backward", &SymmetricModel::backward);
}

}  // namespace

// Loading the module registers the class; `sources` says what it was built from.
PyMODINIT_FUNC PyInit__cpu() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module && PyModule_AddStringConstant(module, "sources", rtm::kSources) < 0) Py_CLEAR(module);
  return module;
}
