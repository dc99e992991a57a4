// Tells the compiler of AVX-512 with AMX for bfloat16 and bytes (Sapphire Rapids and later), up to
// target_end.h. Only after all other headers (isa_includes.h): what those define inline must stay
// fit for any processor.
#if defined(__clang__)
// clang-format off
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2,prfchw,avx512bf16,avx512vpopcntdq,avx512vbmi,avx512vbmi2,amx-tile,amx-bf16,amx-int8"))), apply_to = function)
// clang-format on
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2,prfchw,avx512bf16,avx512vpopcntdq,avx512vbmi,avx512vbmi2,amx-tile,amx-bf16,amx-int8")
#endif

#define PAIRLOSS_AMX
#define PAIRLOSS_VECTOR_BYTES 64
