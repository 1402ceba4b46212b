// The halting policies of one sample, in double so that the order of their few sums does not matter much.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "executor.h"

namespace rtm {

using HaltingLogits = std::array<double, 2>;

// The first of the `count` logits of a sample, at the first position or their mean over L; they lie `stride` apart.
inline HaltingLogits halting_logits(const Halting& h, const float* logits, i64 L, i64 stride, i64 count) {
  HaltingLogits found{};
  const i64 rows = h.mean_pool ? L : 1;
  for (i64 k = 0; k < std::min<i64>(count, 2); ++k) {
    for (i64 l = 0; l < rows; ++l) found[k] += logits[l * stride + k];
    found[k] /= static_cast<double>(rows);
  }
  return found;
}

inline bool all_finite(const float* y, i64 n) {
  bool finite = true;
  for (i64 i = 0; i < n; ++i) finite &= std::isfinite(y[i]);
  return finite;
}

// |y - previous| / |y|
inline double relative_change(const float* y, const float* previous, i64 n) {
  double change = 0, size = 0;
  for (i64 i = 0; i < n; ++i) {
    const double difference = static_cast<double>(y[i]) - previous[i];
    change += difference * difference;
    size += static_cast<double>(y[i]) * y[i];
  }
  return std::sqrt(change) / std::fmax(std::sqrt(size), 1e-30);
}

// `accumulated` is the sum of the halting probabilities so far, of the cumulative policy.
inline bool wants_to_halt(const Halting& h, const HaltingLogits& logits, float change, double& accumulated) {
  switch (h.policy) {
    case Halting::q:
      return logits[0] > 0;
    case Halting::q_continue:
      return logits[0] > logits[1];
    case Halting::settle:
      return change < h.tolerance;
    case Halting::cumulative_sequence:
      accumulated += 1 / (1 + std::exp(-logits[0]));
      return accumulated >= 1;
    default:
      return false;
  }
}

}  // namespace rtm
