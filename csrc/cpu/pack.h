// Weights in the layouts that the kernels read (kernels.h), copied once when a model is loaded.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"

namespace rtm {

// Zeroed floats on a cache-line boundary.
class Buffer {
 public:
  explicit Buffer(i64 size = 0)
      : data_(size ? static_cast<float*>(::operator new(size * sizeof(float), std::align_val_t(64))) : nullptr) {
    if (size) std::memset(data_.get(), 0, size * sizeof(float));
  }
  float* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<float, Free> data_;
};

// `row(i)` is the row of the weight that takes place i, or null for a row of zeros.
using RowOf = std::function<const float*(i64)>;

struct PackedLinear {
  Buffer words;
  bool reduced = false;
  std::vector<float> scale;          // int8: one for each place, in the order of the layout
  std::vector<std::int32_t> offset;  // int8: -128 times the sum of the integers of each place
  Linear view() const {
    return {words.get(), reduced, scale.empty() ? nullptr : scale.data(), offset.empty() ? nullptr : offset.data()};
  }
};

struct PackedSwiGLU {
  PackedLinear gate_up, down;
  i64 inner = 0;
  SwiGLU view() const { return {gate_up.view(), down.view(), inner}; }
};

// Weights in the format of the kernel set, or in float32 unless `reduced`.
// `parts` weights [N, K] that lie one below the other, as columns.
PackedLinear pack_linear(const Kernels&, bool reduced, const float* weight, i64 N, i64 K, i64 parts = 1);
// gate_up [2F, N] and down [N, F], row-major, as columns (channel mix) and as rows (token mix).
PackedSwiGLU pack_channel(const Kernels&, bool reduced, const float* gate_up, const float* down, i64 F, i64 N);
PackedSwiGLU pack_mixer(const Kernels&, bool reduced, const float* gate_up, const float* down, i64 F, i64 N);

}  // namespace rtm
