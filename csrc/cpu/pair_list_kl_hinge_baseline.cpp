// The kernel for lists of pairs, for any processor.
#include "cpu/isa_includes.h"
//
#include "cpu/pair_list_kl_hinge.h"
#include "pair_math.h"

#define PAIRLOSS_ISA baseline
#define PAIRLOSS_VECTOR_BYTES 16
#include "cpu/pair_list_isa_kernels.h"
