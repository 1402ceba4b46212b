#include "pack.h"

#include <algorithm>

namespace rtm {

void pack_columns(const Kernels& k, i64 places, i64 K, i64 filled, const RowOf& row, float* panels) {
  const i64 NR = 2 * k.width;
  for (i64 n = 0; n < places; ++n)
    if (const float* source = row(n))
      for (i64 i = 0; i < filled; ++i) panels[(n / NR * K + i) * NR + n % NR] = source[i];
}

Buffer pack_linear(const Kernels& k, const float* weight, i64 N, i64 K, i64 parts) {
  const i64 size = round_up(N, 2 * k.width) * K;
  Buffer panels(parts * size);
  for (i64 p = 0; p < parts; ++p)
    pack_columns(k, N, K, K, [&](i64 n) { return weight + (p * N + n) * K; }, panels.get() + p * size);
  return panels;
}

void pack_tile(const Kernels& k, i64 rows, i64 K, const RowOf& row, float* tile) {
  const i64 W = k.width;
  for (i64 r = 0; r < rows; ++r)
    if (const float* source = row(r))
      for (i64 i = 0; i < K; ++i) tile[(i / W * rows + r) * W + i % W] = source[i];
}

PackedSwiGLU pack_channel(const Kernels& k, const float* gate_up, const float* down, i64 F, i64 N) {
  const i64 W = k.width, inner = round_up(F, W), columns = round_up(N, 2 * W);
  PackedSwiGLU packed{Buffer(2 * inner * N), Buffer(inner * columns), inner};
  const auto paired = [&](i64 place) -> const float* {
    const i64 f = place / (2 * W) * W + place % W, half = place / W % 2;  // W gates, then their ups
    return f < F ? gate_up + (half * F + f) * N : nullptr;
  };
  pack_columns(k, 2 * inner, N, N, paired, packed.gate_up.get());
  for (i64 f = 0; f < inner; f += kInnerBlock) {
    const i64 width = std::min(kInnerBlock, inner - f), filled = std::min(width, F - f);
    pack_columns(k, N, width, filled, [&](i64 n) { return down + n * F + f; }, packed.down.get() + f * columns);
  }
  return packed;
}

PackedSwiGLU pack_mixer(const Kernels& k, const float* gate_up, const float* down, i64 F, i64 N) {
  const i64 inner = round_up(F, k.width), padded = round_up(N, k.width);
  PackedSwiGLU packed{Buffer(2 * inner * padded), Buffer(N * inner), inner};
  const i64 pairs = ceil_div(inner, k.max_rows / 2);
  for (i64 t = 0; t < pairs; ++t) {
    const i64 f0 = part(inner, pairs, t), half = part(inner, pairs, t + 1) - f0;  // `half` gates, then their ups
    const auto row = [&](i64 r) { return f0 + r % half < F ? gate_up + (r / half * F + f0 + r % half) * N : nullptr; };
    pack_tile(k, 2 * half, N, row, packed.gate_up.get() + 2 * f0 * padded);
  }
  const i64 tiles = ceil_div(N, k.max_rows);
  for (i64 t = 0; t < tiles; ++t) {
    const i64 n = part(N, tiles, t);
    const auto row = [&](i64 r) { return down + (n + r) * F; };
    pack_tile(k, part(N, tiles, t + 1) - n, F, row, packed.down.get() + n * inner);
  }
  return packed;
}

}  // namespace rtm
