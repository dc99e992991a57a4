// The kernel for lists of pairs and what it is built on. No include guard: once per set.
#include "cpu/vec.h"
//
#include "cpu/panels.h"
//
#include "cpu/rows.h"
//
#include "cpu/pair_list_kl_hinge_kernel.h"
