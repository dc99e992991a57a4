#if defined(__x86_64__)
#include "cpu/isa_includes.h"

// As in csrc/cpu/pair_kl_hinge_avx2.cpp, which see.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt,bmi,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,popcnt,bmi,bmi2")
#endif

#define PAIRLOSS_ISA insides_avx2
#define PAIRLOSS_VECTOR_BYTES 32
#include "insides_of_isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
