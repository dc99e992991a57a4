// The kernels for AVX-512 (F, BW, DQ, VL, VNNI).
#if defined(__x86_64__)
#include "cpu/isa_includes.h"
//
#include "cpu/target_avx512.h"

#define PAIRLOSS_ISA avx512
#include "cpu/isa_kernels.h"
//
#include "cpu/target_end.h"
#endif  // __x86_64__
