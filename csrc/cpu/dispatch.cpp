#include "symmetric_layers.h"

namespace rtm {

std::vector<const Kernels*> supported_kernels(Format format) {
  std::vector<const Kernels*> sets;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
  const bool bytes = avx512 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const auto add = [&](const Kernels* set, bool runs) {
    if (set && runs && set->format == format) sets.push_back(set);
  };
  add(avx512_int8_kernels(), bytes && __builtin_cpu_supports("avx512vnni"));
  add(avx512_bfloat16_kernels(), bytes && __builtin_cpu_supports("avx512bf16"));
  add(avx512_kernels(), avx512);
  add(avx2_kernels(), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
#endif
  if (format == Format::float32) sets.push_back(portable_kernels());
  return sets;
}

const SymmetricKernels* symmetric_kernels(const std::string& isa, i64 n) {
  for (const Kernels* set : supported_kernels(Format::float32)) {
    if (isa != set->name) continue;
    return isa == "avx512" ? avx512_symmetric_kernels(n)
           : isa == "avx2" ? avx2_symmetric_kernels(n)
                           : portable_symmetric_kernels(n);
  }
  return nullptr;
}

}  // namespace rtm
