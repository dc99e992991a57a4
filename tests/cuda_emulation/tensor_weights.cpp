// The order of columns that csrc/cuda/tensor_weights.cuh chooses, behind a C interface for ctypes
// (see test_tensor_products.py).
#include "cuda/tensor_weights.cuh"

extern "C" {

// octets[step][half of the classes][place of the mma]: where the kernel finds the octet of the
// column at this place.
void list_octets(int64_t* octets) {
  using namespace pairloss::cuda;
  for (int step = 0; step < kSteps; ++step)
    for (int half = 0; half < kSliceOctets; ++half)
      for (int place = 0; place < 16; ++place)
        *octets++ = plane_octet(column_at(step, place), half);
}

// columns[step][lane of a row][c]: whose marks the lane reads, in the order of its word.
void list_columns(int64_t* columns) {
  using namespace pairloss::cuda;
  for (int step = 0; step < kSteps; ++step)
    for (int t = 0; t < 4; ++t)
      for (int c = 0; c < kMicro; ++c) *columns++ = quad_of_lane(step, t) * kMicro + c;
}

}  // extern "C"
