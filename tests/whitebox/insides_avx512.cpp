#if defined(__x86_64__)
#include "cpu/isa_includes.h"
//
#include "cpu/target_avx512.h"

#define PAIRLOSS_ISA insides_avx512
#include "insides_of_isa.h"
//
#include "cpu/target_end.h"
#endif  // __x86_64__
