// Weights in the layouts that the kernels read (kernels.h), copied once when a model is loaded.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <new>

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

// `row(i)` is the row [K] of the weight that takes place i, or null for a row of zeros.
using RowOf = std::function<const float*(i64)>;

// Panels [places / 2W][K][2W] of `places` columns, of which the first `filled` of the K elements are read.
void pack_columns(const Kernels&, i64 places, i64 K, i64 filled, const RowOf& row, float* panels);
// The panels of `parts` weights [N, K] that lie one below the other.
Buffer pack_linear(const Kernels&, const float* weight, i64 N, i64 K, i64 parts = 1);

// One tile [K / W][rows][W]; the tile is zero where a row is null or has no element.
void pack_tile(const Kernels&, i64 rows, i64 K, const RowOf& row, float* tile);

struct PackedSwiGLU {
  Buffer gate_up, down;
  i64 inner = 0;
  SwiGLU view() const { return {gate_up.get(), down.get(), inner}; }
};

// gate_up [2F, N] and down [N, F], row-major.
PackedSwiGLU pack_channel(const Kernels&, const float* gate_up, const float* down, i64 F, i64 N);
PackedSwiGLU pack_mixer(const Kernels&, const float* gate_up, const float* down, i64 F, i64 N);

}  // namespace rtm
