#if defined(__x86_64__)
#include "cpu/isa_includes.h"
//
#include "cpu/target_avx2.h"

#define PAIRLOSS_ISA insides_avx2
#include "insides_of_isa.h"
//
#include "cpu/target_end.h"
#endif  // __x86_64__
