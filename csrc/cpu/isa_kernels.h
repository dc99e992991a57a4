// The kernels themselves, in the order in which they build on each other. No include guard: once
// per set.
#include "cpu/vec.h"
//
#include "cpu/panels.h"
//
#include "cpu/bit_lists.h"
#include "cpu/bits.h"
#include "cpu/certificates.h"
#include "cpu/relation.h"
#include "cpu/rows.h"
#include "cpu/similar.h"
#include "cpu/subset_sums.h"
//
#include "cpu/tile.h"
#include "cpu/transpose.h"
//
#include "cpu/amx.h"
#include "cpu/amx_sums.h"
#include "cpu/supports.h"
#include "cpu/vnni.h"
//
#include "cpu/source.h"
//
#include "cpu/selected_sums.h"
//
#include "cpu/batch.h"
#include "cpu/selected.h"
//
#include "cpu/pair_kl_hinge_value.h"
//
#include "cpu/pair_kl_hinge_gradient.h"
//
#include "cpu/pair_kl_hinge_kernel.h"
