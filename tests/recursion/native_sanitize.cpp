// Every layer kind at hostile sizes in exactly sized heap blocks, for a build with -fsanitize=address,undefined.
// The instruction sets must agree with each other, those of the reduced formats to their rounding, or the exit status
// is 1.
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

#include "native_layer.h"

namespace {

// Latents y and z of 3 samples, and the logits of the heads, after one pass of TRM with halting by settling.
Floats solve(const rtm::Kernels& k, const Case& c, const Weights& w, Floats y, Floats z, const Floats& x) {
  rtm::Executor executor(&k, c.D, 2);
  executor.add_layer(0, pack(k, c, w));
  executor.add_layer(0, pack(k, c, w));
  executor.add_step({1, 0, {1}, {0, 2}});
  executor.add_step({0, 0, {0}, {1}});
  executor.set_heads({rtm::pack_linear(k, false, w.heads.data(), kHeads, c.D),
                      rtm::Buffer(rtm::round_up(kHeads, 2 * k.width)), 0, kHeads, kHeads - 2, 1});
  const rtm::Halting halting{rtm::Halting::settle, true, 1, 2, 1e-9f};
  std::array<i64, 3> steps, reason;
  Floats logits(3 * c.L * kHeads), change(3);
  std::vector<std::int32_t> answers(3 * (c.L - 1));
  std::array<bool, 3> finite;
  executor.solve({y.data(), z.data()}, x.data(), 3, c.L, halting, {steps.data(), reason.data()},
                 {logits.data(), answers.data(), finite.data(), change.data()});
  y.insert(y.end(), z.begin(), z.end());
  y.insert(y.end(), logits.begin(), logits.end());
  return y;
}

std::vector<const rtm::Kernels*> all_kernels() {
  std::vector<const rtm::Kernels*> all;
  for (rtm::Format format : {rtm::Format::float32, rtm::Format::bfloat16, rtm::Format::int8})
    for (const rtm::Kernels* k : rtm::supported_kernels(format)) all.push_back(k);
  return all;
}

}  // namespace

int main() {
  int wrong = 0;
  for (const Case& c : kCases) {
    const Weights w = weights(c);
    const Floats y = randoms(3 * c.L * c.D, 1.0f), z = randoms(3 * c.L * c.D, 1.0f), x = randoms(3 * c.L * c.D, 1.0f);
    Floats expected;
    for (const rtm::Kernels* k : all_kernels())
      for (int threads : {1, 2}) {
        at::set_num_threads(threads);
        const Floats value = solve(*k, c, w, y, z, x);
        if (expected.empty()) expected = value;
        double error = 0, size = 0;
        for (size_t i = 0; i < value.size(); ++i) {
          error += std::pow(double(value[i]) - expected[i], 2);
          size += std::pow(double(expected[i]), 2);
        }
        const double off = std::sqrt(error / size);
        if (off < (k->format == rtm::Format::float32 ? 1e-4 : 0.3)) continue;
        std::printf("%s, %d threads, L=%ld D=%ld: off by %g\n", k->name, threads, long(c.L), long(c.D), off);
        wrong = 1;
      }
  }
  std::printf("%zu cases, %zu instruction sets\n", kCases.size(), all_kernels().size());
  return wrong;
}
