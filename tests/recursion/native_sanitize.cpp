// Every layer kind at hostile sizes in exactly sized heap blocks, for a build with -fsanitize=address,undefined.
// The instruction sets must agree with each other, those of the reduced formats to their rounding, or the exit status
// is 1. Threads are std::thread's, as where PyTorch brings no OpenMP runtime.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

#include "native_layer.h"
#include "symmetric_executor.h"

namespace {

// Latents y and z of 3 samples, and the logits of the heads, after one ACT step of TRM.
Floats step(const rtm::Kernels& k, const Case& c, const Weights& w, Floats y, Floats z, const Floats& x, i64 threads) {
  rtm::Executor executor(&k, c.D, 2);
  executor.add_layer(0, pack(k, c, w));
  executor.add_layer(0, pack(k, c, w));
  executor.add_step({1, 0, {1}, {0, 2}});
  executor.add_step({0, 0, {0}, {1}});
  executor.set_heads({rtm::pack_linear(k, false, w.heads.data(), kHeads, c.D),
                      rtm::Buffer(rtm::round_up(kHeads, 2 * k.width)), 0, kHeads, kHeads - 2, 1});
  Floats logits(3 * c.L * kHeads), change(3);
  std::vector<std::int32_t> answers(3 * (c.L - 1));
  std::array<bool, 3> finite;
  executor.act_step({y.data(), z.data()}, x.data(), 3, c.L,
                    {logits.data(), answers.data(), finite.data(), change.data()}, threads);
  y.insert(y.end(), z.begin(), z.end());
  y.insert(y.end(), logits.begin(), logits.end());
  return y;
}

// Cases with a convolution: over grids with and without a prefix, one cell, and along the sequence.
const std::vector<Case> kConvolved = {
    {52, 20, 24, 0, 0, true, false, 3, 3}, {25, 33, 40, 0, 0, true, false, 5}, {400, 17, 16, 0, 0, true, false, 3},
    {2, 5, 3, 0, 0, true, false, 3, 1},    {7, 24, 520, 0, 3, true, false, 2}, {131, 66, 50, 0, 3, false, true, 3}};

std::vector<const rtm::Kernels*> all_kernels() {
  std::vector<const rtm::Kernels*> all;
  for (rtm::Format format : {rtm::Format::float32, rtm::Format::bfloat16, rtm::Format::int8})
    for (const rtm::Kernels* k : rtm::supported_kernels(format)) all.push_back(k);
  return all;
}

// Sizes of boards: nothing left over, something everywhere, less than a vector.
const std::vector<rtm::SymmetricSizes> kBoards{{4, 2, 16, 4, 0, 9, 0, 2, 0}, {9, 3, 81, 3, 2, 17, 5, 3, 4},
                                               {4, 2, 16, 1, 1, 1, 3, 1, 2}};

// Latents y and z of 3 samples after TRM with two layers, then gradients of both, of x and of the weights.
Floats differentiate(const char* isa, const rtm::SymmetricSizes& sizes, const std::vector<Floats>& weights,
                     const Floats& y, const Floats& z, const Floats& x, i64 threads) {
  rtm::SymmetricExecutor executor(rtm::symmetric_kernels(isa, sizes.n), sizes, 2, 1e-5f);
  const auto tensors = [](std::vector<Floats>& w) {
    return rtm::SymmetricTensors{w[0].data(), w[1].data(), w[2].data(), w[3].data(), w[4].data(),
                                 w[5].data(), w[6].data(), w[7].data(), w[8].data(), w[9].data()};
  };
  std::vector<Floats> given = weights, first = weights, second = weights;
  for (i64 layer : {0, 1}) executor.set_layer(0, layer, tensors(given));
  executor.add_step({1, 0, {1}, {0, 2}});
  executor.add_step({0, 0, {0}, {1}});
  const i64 state = executor.sizes().state();
  std::vector<Floats> sorted(3, Floats(3 * state));
  executor.sort(y.data(), 3, sorted[0].data(), threads);
  executor.sort(z.data(), 3, sorted[1].data(), threads);
  executor.sort(x.data(), 3, sorted[2].data(), threads);
  std::vector<Floats> plain = sorted;
  executor.forward({plain[0].data(), plain[1].data()}, plain[2].data(), 3, 0, 2, nullptr, threads);
  Floats saved(3 * executor.saved_size(0, 2)), dx(3 * state);
  executor.forward({sorted[0].data(), sorted[1].data()}, sorted[2].data(), 3, 0, 2, saved.data(), threads);
  Floats out(y.size()), all;
  const auto keep = [&](const Floats& from) {
    executor.unsort(from.data(), 3, out.data(), threads);
    all.insert(all.end(), out.begin(), out.end());
  };
  keep(plain[0]), keep(plain[1]), keep(sorted[0]), keep(sorted[1]);
  executor.backward({sorted[0].data(), sorted[1].data()}, dx.data(), saved.data(), 3, 0, 2,
                    {tensors(first), tensors(second)}, threads);
  keep(sorted[0]), keep(sorted[1]), keep(dx);
  for (const auto* grads : {&first, &second})
    for (const Floats& g : *grads) all.insert(all.end(), g.begin(), g.end());
  return all;
}

double distance(const Floats& value, const Floats& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < value.size(); ++i) {
    error += std::pow(double(value[i]) - expected[i], 2);
    size += std::pow(double(expected[i]), 2);
  }
  return std::sqrt(error / size);
}

int check_boards() {
  int wrong = 0;
  for (const rtm::SymmetricSizes& z : kBoards) {
    const i64 D = z.n * z.C + z.r, H = z.F + z.s, size = 3 * z.L * D;
    std::vector<Floats> w;
    for (i64 n : {z.copies * 6, z.copies * 6, z.copies * 6, z.still, z.still, z.still, 2 * z.F * z.C,
                  2 * H * (z.C + z.r), z.F * z.C, H * (z.C + z.r)})
      w.push_back(randoms(n, 0.3f));
    const Floats y = randoms(size, 1.0f), zs = randoms(size, 1.0f), x = randoms(size, 1.0f);
    Floats expected;
    for (const rtm::Kernels* k : rtm::supported_kernels(rtm::Format::float32))
      for (int threads : {1, 2}) {
        const Floats value = differentiate(k->name, z, w, y, zs, x, threads);
        if (expected.empty()) expected = value;
        const double off = distance(value, expected);
        if (off < 1e-3) continue;
        std::printf("%s, %d threads, board of side %ld: off by %g\n", k->name, threads, long(z.n), off);
        wrong = 1;
      }
  }
  return wrong;
}

}  // namespace

int main() {
  int wrong = check_boards();
  std::vector<Case> cases = kCases;
  cases.insert(cases.end(), kConvolved.begin(), kConvolved.end());
  for (const Case& c : cases) {
    const Weights w = weights(c);
    const Floats y = randoms(3 * c.L * c.D, 1.0f), z = randoms(3 * c.L * c.D, 1.0f), x = randoms(3 * c.L * c.D, 1.0f);
    Floats expected;
    for (const rtm::Kernels* k : all_kernels())
      for (int threads : {1, 2}) {
        const Floats value = step(*k, c, w, y, z, x, threads);
        if (expected.empty()) expected = value;
        const double off = distance(value, expected);
        if (off < (k->format == rtm::Format::float32 ? 1e-4 : 0.3)) continue;
        std::printf("%s, %d threads, L=%ld D=%ld: off by %g\n", k->name, threads, long(c.L), long(c.D), off);
        wrong = 1;
      }
  }
  std::printf("%zu cases, %zu boards, %zu instruction sets\n", cases.size(), kBoards.size(), all_kernels().size());
  return wrong;
}
