#include "cpu/isa_includes.h"

#define PAIRLOSS_ISA insides_baseline
#define PAIRLOSS_VECTOR_BYTES 16
#include "insides_of_isa.h"
