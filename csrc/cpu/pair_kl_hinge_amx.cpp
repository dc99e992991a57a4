// The kernels for AVX-512 with AMX for bfloat16 (Sapphire Rapids and later).
#if defined(__x86_64__)
#include "cpu/isa_includes.h"

// After the includes above: what headers define inline must stay fit for any processor.
#if defined(__clang__)
#pragma clang attribute push(                                                                                               \
    __attribute__((target(                                                                                                  \
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2,avx512bf16,avx512vpopcntdq,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2,avx512bf16,avx512vpopcntdq,amx-tile,amx-bf16")
#endif

// GCC's own headers, about registers that are undefined on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define PAIRLOSS_ISA amx
#define PAIRLOSS_AMX
#define PAIRLOSS_VECTOR_BYTES 64
#include "cpu/isa_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
