#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define RTM_ISA portable
#define RTM_NAME "portable"
#define RTM_WIDTH 4
#include "kernel_set.h"
#include "symmetric.h"

const rtm::Kernels* rtm::portable_kernels() { return portable::kernels(); }
const rtm::SymmetricKernels* rtm::portable_symmetric_kernels(i64 n) { return portable::symmetric_kernels(n); }
