// The kernel set of the instruction set named by RTM_ISA, as the executor sees it.
#pragma once

#include <algorithm>

#include "attention.h"

namespace rtm::RTM_ISA {

static i64 scratch_size(const Layer& layer, i64 L, i64 D) {
  const i64 rows = std::min(L, kRowChunk), row_size = row_blocks(D) * rows * W;
  const i64 by_rows = 2 * row_size + std::max(row_size, kInnerBlock * rows);
  if (!layer.attends) return std::max(by_rows, (2 * L + layer.mixer.inner) * NR);
  const i64 project = 2 * row_size + row_blocks(D) * W + D;
  return std::max({by_rows, project, (ceil_div(L, NR) + 1) * NR * MR});
}

static HeadSizes head_sizes(const Layer& layer, i64 L) {
  const Attention& a = layer.attention;
  return {a.heads * round_up(a.head_dim, W) * L, a.heads * round_up(L, NR) * a.head_dim,
          a.heads * round_up(a.head_dim, NR) * L};
}

static const Kernels* kernels() {
  static constexpr Kernels set = {RTM_NAME, W,      MR,           token_mix, channel_mix, attention_project,
                                  attend,   attention_channel_mix, scratch_size, head_sizes};
  return &set;
}

}  // namespace rtm::RTM_ISA
