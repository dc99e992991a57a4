// The kernels for AVX-512 with AMX for bfloat16 and bytes (Sapphire Rapids and later).
#if defined(__x86_64__)
#include "cpu/isa_includes.h"
//
#include "cpu/target_amx.h"

#define PAIRLOSS_ISA amx
#include "cpu/isa_kernels.h"
//
#include "cpu/target_end.h"
#endif  // __x86_64__
