#include "kernels.h"
#include "symmetric_layers.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define RTM_ISA avx2
#define RTM_NAME "avx2"
#define RTM_WIDTH 8
#include "kernel_set.h"
#include "symmetric.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const rtm::Kernels* rtm::avx2_kernels() { return avx2::kernels(); }
const rtm::SymmetricKernels* rtm::avx2_symmetric_kernels(i64 n) { return avx2::symmetric_kernels(n); }
#else
const rtm::Kernels* rtm::avx2_kernels() { return nullptr; }
const rtm::SymmetricKernels* rtm::avx2_symmetric_kernels(i64) { return nullptr; }
#endif
