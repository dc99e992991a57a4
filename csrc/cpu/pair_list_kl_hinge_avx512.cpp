// The kernel for lists of pairs, for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)
#include "cpu/isa_includes.h"
//
#include "cpu/pair_list_kl_hinge.h"
#include "pair_math.h"

// As in pair_kl_hinge_avx512.cpp, which see.
#if defined(__clang__)
#pragma clang attribute push(                                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2")
#endif

#define PAIRLOSS_ISA avx512
#define PAIRLOSS_VECTOR_BYTES 64
#include "cpu/vec.h"
//
#include "cpu/panels.h"
//
#include "cpu/rows.h"
//
#include "cpu/pair_list_kl_hinge_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
