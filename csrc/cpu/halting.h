// The halting head and policies of one sample, in double so that the order of its few sums does not matter much.
#pragma once

#include <cmath>

#include "executor.h"

namespace rtm {

// logits = weight y[0] + bias, or of the mean over L; y [L, D].
inline void head_logits(const Halting& h, const float* y, i64 L, i64 D, float* logits) {
  const i64 rows = h.mean_pool ? L : 1;
  for (i64 k = 0; k < (h.weight ? h.logits : 0); ++k) {
    double total = 0;
    for (i64 l = 0; l < rows; ++l)
      for (i64 d = 0; d < D; ++d) total += static_cast<double>(h.weight[k * D + d]) * y[l * D + d];
    logits[k] = static_cast<float>(total / rows + (h.bias ? h.bias[k] : 0.0f));
  }
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
inline bool wants_to_halt(const Halting& h, const float* logits, const float* y, const float* previous, i64 n,
                          double& accumulated) {
  switch (h.policy) {
    case Halting::q:
      return logits[0] > 0;
    case Halting::q_continue:
      return logits[0] > logits[1];
    case Halting::settle:
      return relative_change(y, previous, n) < h.tolerance;
    case Halting::cumulative_sequence:
      accumulated += 1 / (1 + std::exp(-static_cast<double>(logits[0])));
      return accumulated >= 1;
    default:
      return false;
  }
}

}  // namespace rtm
