// The kernel set of the instruction set named by RTM_ISA, as the executor sees it.
#pragma once

#include "conv.h"

#ifndef RTM_FORMAT
#define RTM_FORMAT float32
#endif

namespace rtm::RTM_ISA {

static i64 scratch_size(const Layer& layer, i64 L, i64 D) {
  const i64 rows = std::min(L, kRowChunk), row_size = row_blocks(D) * rows * W;
  i64 by_rows = 2 * row_size + std::max(row_size, kInnerBlock * rows);
  i64 by_columns = (2 * L + layer.mixer.inner) * NR;
  i64 project = 2 * row_size + row_blocks(D) * W + round_up(D, W);
#ifdef RTM_REDUCED
  by_rows = std::max(by_rows + reduced_rows_scratch(D, rows), 3 * row_size + row_words(D, rows) + rows);
  by_columns += reduced_columns_scratch(L, layer.mixer.inner);
  project += row_words(D, rows) + rows;
#endif
  if (!layer.attends) return std::max(by_rows, by_columns);
  return std::max({by_rows, project, (ceil_div(L, NR) + 1) * NR * MR});
}

static HeadSizes head_sizes(const Layer& layer, i64 L) {
  const Attention& a = layer.attention;
  return {a.heads * round_up(a.head_dim, W) * L, a.heads * round_up(L, NR) * a.head_dim,
          a.heads * round_up(a.head_dim, NR) * L};
}

static const Kernels* kernels() {
  static constexpr Kernels set = {
      RTM_NAME,          Format::RTM_FORMAT, W,      MR,           token_mix, channel_mix,
      attention_project, attend, attention_channel_mix, conv_expand, attention_conv_expand, conv_reduce,
      project,           scratch_size, head_sizes};
  return &set;
}

}  // namespace rtm::RTM_ISA
