// The kernel for lists of pairs, for AVX-512 (F, BW, DQ, VL, VNNI).
#if defined(__x86_64__)
#include "cpu/isa_includes.h"
//
#include "cpu/pair_list_kl_hinge.h"
#include "pair_math.h"
//
#include "cpu/target_avx512.h"

#define PAIRLOSS_ISA avx512
#include "cpu/pair_list_isa_kernels.h"
//
#include "cpu/target_end.h"
#endif  // __x86_64__
