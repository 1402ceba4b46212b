// Runs and differentiates programs whose stacks are symmetric layers, on latents in their layout.
#pragma once

#include <vector>

#include "executor.h"
#include "symmetric_layers.h"

namespace rtm {

// The weights of one layer as they are trained, row by row, and where their gradients go.
struct SymmetricTensors {
  float *gate, *up, *down;                     // [copies, 2, 3]
  float *gate_still, *up_still, *down_still;   // [still]
  float *gate_up, *gate_up_shared;             // [2F, C], [2(F + s), C + r]
  float *down_t, *down_shared_t;               // [F, C], [F + s, C + r]
};

class SymmetricExecutor {
 public:
  SymmetricExecutor(const SymmetricKernels* kernels, SymmetricSizes sizes, i64 latents, float eps);

  const SymmetricSizes& sizes() const { return z_; }
  i64 latents() const { return latents_; }
  i64 layers() const;
  void add_step(Step step) { tape_.push_back(std::move(step)); }
  void set_layer(i64 stack, i64 layer, const SymmetricTensors& weights);

  // B samples [L, D] into the layout of the kernels, and back.
  void sort(const float* x, i64 B, float* sorted, i64 threads) const;
  void unsort(const float* sorted, i64 B, float* x, i64 threads) const;

  // Floats of one sample that `backward` reads again of steps [begin, end).
  i64 saved_size(i64 begin, i64 end) const;
  // Steps [begin, end) in place for B samples; saved [B, saved_size] may be null.
  void forward(const std::vector<float*>& latents, const float* x, i64 B, i64 begin, i64 end, float* saved,
               i64 threads) const;
  // d: gradients of the latents after the steps become those before them, and dx is added to; weight gradients, layer
  // by layer in the order of the stacks, are written.
  void backward(const std::vector<float*>& d, float* dx, const float* saved, i64 B, i64 begin, i64 end,
                const std::vector<SymmetricTensors>& grads, i64 threads) const;

 private:
  struct Packed {
    SymmetricLayer layer{};
    std::vector<float> weights;
  };
  i64 layer_size() const { return 2 * z_.state() + z_.lanes() + round_up(z_.L, 16); }
  i64 gradient_size() const;
  SymmetricGradients gradients(float* at) const;
  i64 first_layer(i64 stack) const;

  const SymmetricKernels* kernels_;
  SymmetricSizes z_;
  i64 latents_;
  float eps_;
  std::vector<std::vector<Packed>> stacks_;
  std::vector<Step> tape_;
};

}  // namespace rtm
