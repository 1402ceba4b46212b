// Runs programs: a tape of steps `latent[dst] <- stack((sum of state) + (sum of inject))` over [L, D] samples.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "pack.h"
#include "parallel.h"

namespace rtm {

struct Step {
  i64 dst, stack;
  std::vector<i64> state, inject;  // latent numbers; the number of latents itself stands for the input x
};

// Packed weights of one layer; the pointers of `layer` lead into them.
struct PackedLayer {
  Layer layer{};
  PackedSwiGLU mixer, channel;
  PackedLinear qkv, out;
  Buffer cos, sin;
  Buffer conv, conv_bias;
};

// Memory of one call, leased and given back so that calls from several threads never share it.
struct Workspace {
  i64 L, threads;
  std::vector<Buffer> scratch;  // one per thread
  std::vector<Buffer> work;     // one [L, D] for each sample in flight, as the next four
  std::vector<Buffer> query, key, value, mixed, previous, act;
};

// What an ACT step leaves of each sample beside its latents.
struct Seen {
  float* logits;          // [B, L, N] of the heads
  std::int32_t* answers;  // [B, L - prefix], the largest logit of the vocabulary; not written without one
  bool* finite;           // [B], whether latents and logits are
  float* change;          // [B], |y - y before| / |y| of the output latent
};

// What reads the output latent of an ACT step at every position: N logits, of them first `tokens` of the vocabulary,
// then those of halting.
struct PackedHeads {
  PackedLinear weight;
  Buffer bias;
  i64 output = 0, N = 0, tokens = 0, prefix = 0;
};

class Executor {
 public:
  Executor(const Kernels* kernels, i64 D, i64 latents) : kernels_(kernels), D_(D), latents_(latents) {}

  const Kernels& kernels() const { return *kernels_; }
  i64 hidden_size() const { return D_; }
  i64 latents() const { return latents_; }
  i64 steps() const { return static_cast<i64>(tape_.size()); }
  void add_layer(i64 stack, PackedLayer layer);
  void add_step(Step step) { tape_.push_back(std::move(step)); }
  void set_heads(PackedHeads heads) { heads_ = std::move(heads); }
  const PackedHeads& heads() const { return heads_; }

  // Steps [begin, end) of the tape for B samples in place: latents[i] and x are [B, L, D].
  void run(const std::vector<float*>& latents, const float* x, i64 B, i64 L, i64 begin, i64 end, i64 threads) const;

  // The whole tape, then the heads.
  void act_step(const std::vector<float*>& latents, const float* x, i64 B, i64 L, const Seen& seen, i64 threads) const;

 private:
  struct Sample;
  template <class F>
  void for_each_sample(const std::vector<float*>& latents, const float* x, i64 B, i64 L, i64 threads, const F& f) const;
  void step_sample(const Sample& sample, const Seen& seen) const;
  void read_heads(const Sample& sample, float* logits) const;
  void run_sample(const Sample& sample, i64 begin, i64 end) const;
  template <class F>
  static void split(const Sample& sample, i64 n, const F& f);
  template <class F>
  static void split_rows(const Sample& sample, const F& f);
  void run_mlp(const Layer& layer, const Sources& sources, float* dst, const Sample& sample) const;
  void run_conv(const Layer& layer, const Sources& sources, float* dst, const Sample& sample) const;
  void run_attention(const Layer& layer, const Sources& sources, float* dst, const Sample& sample) const;
  std::unique_ptr<Workspace> lease(i64 L, i64 threads) const;
  void give_back(std::unique_ptr<Workspace> workspace) const;

  const Kernels* kernels_;
  i64 D_, latents_;
  std::vector<std::vector<PackedLayer>> stacks_;
  std::vector<Step> tape_;
  PackedHeads heads_;
  mutable std::mutex mutex_;
  mutable i64 leased_L_ = 0, leased_threads_ = 0;
  mutable std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace rtm
