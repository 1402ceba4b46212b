// The kernel set of the instruction set named by RTM_ISA, as the executor sees it.
#pragma once

#include <algorithm>

#include "mlp.h"

namespace rtm::RTM_ISA {

static i64 scratch_size(const Layer& layer, i64 L, i64 D) {
  const i64 rows = std::min(L, kRowChunk);
  const i64 by_rows = (2 * row_blocks(D) * W + kInnerBlock) * rows;
  const i64 by_columns = layer.attends ? 0 : (2 * L + layer.mixer.inner) * NR;
  return std::max(by_rows, by_columns);
}

static const Kernels* kernels() {
  static constexpr Kernels set = {RTM_NAME, W, MR, token_mix, channel_mix, scratch_size};
  return &set;
}

}  // namespace rtm::RTM_ISA
