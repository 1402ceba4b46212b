#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma"))), apply_to = function)
#else
#pragma GCC diagnostic ignored "-Wuninitialized"  // _mm512_undefined_ps of GCC 12
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")
#endif
#define RTM_ISA avx512_bfloat16
#define RTM_NAME "avx512_bf16"
#define RTM_WIDTH 16
#define RTM_FORMAT bfloat16
#define RTM_REDUCED "bfloat16.h"
#include "kernel_set.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const rtm::Kernels* rtm::avx512_bfloat16_kernels() { return avx512_bfloat16::kernels(); }
#else
const rtm::Kernels* rtm::avx512_bfloat16_kernels() { return nullptr; }
#endif
