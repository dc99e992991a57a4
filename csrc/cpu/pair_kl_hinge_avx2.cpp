// The kernels for AVX2 and FMA.
#if defined(__x86_64__)
#include "cpu/isa_includes.h"

// After the includes above: what headers define inline must stay fit for any processor.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt,bmi,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,popcnt,bmi,bmi2")
#endif

#define PAIRLOSS_ISA avx2
#define PAIRLOSS_VECTOR_BYTES 32
#include "cpu/isa_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
