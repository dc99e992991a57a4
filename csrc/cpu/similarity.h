// Who is similar to whom, by a matrix.
#pragma once

#include <cstdint>

#include "cpu/labels.h"
#include "cpu/workers.h"

namespace pairloss::cpu {

// For similarity (n, n) in {1, 0, -1} one level whose id is 0 for the rows that take part in any
// pair, and which counts the ordered pairs as halves. The diagonal does not count.
Level make_level_of_matrix(const int8_t* similarity, int64_t n, const Workers& workers);

}  // namespace pairloss::cpu
