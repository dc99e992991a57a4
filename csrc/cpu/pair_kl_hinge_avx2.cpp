// The kernels for AVX2 and FMA.
#if defined(__x86_64__)
#include "cpu/isa_includes.h"
//
#include "cpu/target_avx2.h"

#define PAIRLOSS_ISA avx2
#include "cpu/isa_kernels.h"
//
#include "cpu/target_end.h"
#endif  // __x86_64__
