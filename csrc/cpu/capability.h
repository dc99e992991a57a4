// Which instruction set the CPU kernels use, decided once per process.
#pragma once

#include "cpu/pair_kl_hinge.h"

namespace pairloss::cpu {

enum class Capability { baseline = 0, avx2 = 1, avx512 = 2, amx = 3 };

// The best that this processor has, or what PAIRLOSS_CPU_CAPABILITY (default, avx2, avx512, amx)
// asks for if the processor has that; anything else in the variable is ignored.
Capability capability();

// What an evaluation of so many multiply-adds uses: that, unless nothing was asked for and the work
// is so little that the widest vectors cost more than they save: scalar code that follows them is a
// tenth slower (they lower the clock), and most of a small batch's training step is the
// framework's.
Capability capability_for(double work);

bool is_supported(Capability capability);

const Kernels& kernels_for(Capability capability);

}  // namespace pairloss::cpu
