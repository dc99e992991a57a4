// Tells the compiler of AVX-512 (F, BW, DQ, VL, VNNI), up to target_end.h. Only after all
// other headers (isa_includes.h): what those define inline must stay fit for any processor.
#if defined(__clang__)
// clang-format off
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,popcnt,bmi,bmi2,prfchw"))), apply_to = function)
// clang-format on
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,popcnt,bmi,bmi2,prfchw")
#endif

#define PAIRLOSS_VNNI
#define PAIRLOSS_VECTOR_BYTES 64
