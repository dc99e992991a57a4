// What the kernels of an instruction set include before the compiler is told of that set.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <list>
#include <new>
#include <optional>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
// GCC 12 warns of its own header, of registers that are undefined on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#include "cpu/arena.h"
#include "cpu/ideas.h"
#include "cpu/labels.h"
#include "cpu/pair_kl_hinge.h"
#include "cpu/schedule.h"
#include "cpu/workers.h"
#include "pair_math.h"
