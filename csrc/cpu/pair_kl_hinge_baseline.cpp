// The kernels for any processor.
#include "cpu/isa_includes.h"

#define PAIRLOSS_ISA baseline
#define PAIRLOSS_VECTOR_BYTES 16
#include "cpu/isa_kernels.h"
