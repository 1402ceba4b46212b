// Threads of one call: the caller says how many, and PyTorch's own OpenMP runtime runs them, so that a process has one
// set of threads.
#pragma once

#include <atomic>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace rtm {

// Calls body(data) on `threads` threads at once, the calling one among them. This is the signature of GOMP_parallel,
// which GCC's, LLVM's and Intel's runtimes have.
using Team = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

extern Team team;  // without a runtime: the calling thread alone on Linux, std::thread elsewhere

// f(first, last, i) for each part i of [0, n) in at most `threads` equal parts.
template <class F>
void parallel_for(i64 threads, i64 n, const F& f) {
  const i64 parts = std::min(threads, n);
  if (parts <= 1) {
    if (parts == 1) f(0, n, 0);
    return;
  }
  std::atomic<i64> next{0};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::string error;  // an exception_ptr would ask for a newer libstdc++ than manylinux_2_28 has
  auto work = [&] {
    try {
      for (i64 i = next++; i < parts; i = next++) f(part(n, parts, i), part(n, parts, i + 1), i);
    } catch (const std::exception& e) {
      if (!failed.test_and_set()) error = e.what();
    }
  };
  // always the whole team: libgomp ends the threads that a smaller one leaves out
  team([](void* data) { (*static_cast<decltype(work)*>(data))(); }, &work, static_cast<unsigned>(threads), 0);
  if (!error.empty()) throw std::runtime_error(error);
}

}  // namespace rtm
