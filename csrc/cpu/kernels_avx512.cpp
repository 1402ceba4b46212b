#include "kernels.h"
#include "symmetric_layers.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC diagnostic ignored "-Wuninitialized"  // _mm512_undefined_ps of GCC 12
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512dq,avx2,fma")
#endif
#define RTM_ISA avx512
#define RTM_NAME "avx512"
#define RTM_WIDTH 16
#include "kernel_set.h"
#include "symmetric.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const rtm::Kernels* rtm::avx512_kernels() { return avx512::kernels(); }
const rtm::SymmetricKernels* rtm::avx512_symmetric_kernels(i64 n) { return avx512::symmetric_kernels(n); }
#else
const rtm::Kernels* rtm::avx512_kernels() { return nullptr; }
const rtm::SymmetricKernels* rtm::avx512_symmetric_kernels(i64) { return nullptr; }
#endif
