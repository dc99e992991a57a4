// Tells the compiler of AVX2 and FMA, up to target_end.h. Only after all
// other headers (isa_includes.h): what those define inline must stay fit for any processor.
#if defined(__clang__)
// clang-format off
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt,bmi,bmi2,prfchw"))), apply_to = function)
// clang-format on
#else
#pragma GCC target("avx2,fma,f16c,popcnt,bmi,bmi2,prfchw")
#endif

#define PAIRLOSS_VECTOR_BYTES 32
