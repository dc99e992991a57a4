#if defined(__x86_64__)
#include "cpu/isa_includes.h"
//
#include "cpu/target_amx.h"

#define PAIRLOSS_ISA insides_amx
#include "insides_of_isa.h"
//
#include "cpu/target_end.h"
#endif  // __x86_64__
