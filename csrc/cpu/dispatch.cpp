#include "kernels.h"

namespace rtm {

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> sets;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (avx512_kernels() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
    sets.push_back(avx512_kernels());
  if (avx2_kernels() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    sets.push_back(avx2_kernels());
#endif
  sets.push_back(portable_kernels());
  return sets;
}

}  // namespace rtm
