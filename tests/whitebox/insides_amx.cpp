#if defined(__x86_64__)
#include "cpu/isa_includes.h"

// As in csrc/cpu/pair_kl_hinge_amx.cpp, which see.
#if defined(__clang__)
#pragma clang attribute push(                                                                                               \
    __attribute__((target(                                                                                                  \
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2,avx512bf16,avx512vpopcntdq,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2,avx512bf16,avx512vpopcntdq,amx-tile,amx-bf16")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define PAIRLOSS_ISA insides_amx
#define PAIRLOSS_AMX
#define PAIRLOSS_VECTOR_BYTES 64
#include "insides_of_isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
