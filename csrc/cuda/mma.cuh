// The instructions around the tensor cores, one function each, so that the emulation in
// tests/cuda_emulation/ has something to replace. sm_80 and newer.
//
// A fragment is the share of a matrix that one lane holds (PTX ISA, "Matrix fragments for
// mma.m16n8k16"): with g = lane / 4 and t = lane % 4, and pairs of neighbouring elements in one
// register, the first in its low half,
//
//   a (16 x 16)  (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
//   b (16 x 8)   (2t, g), (2t + 8, g)
//   d (16 x 8)   (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//
// and with one element in a register ("Matrix fragments for mma.m16n8k8", .tf32), the same d and
//
//   a (16 x 8)   (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//   b (8 x 8)    (t, g), (t + 4, g)
//
// so that one row of ldmatrix, 16 bytes, is half of an mma's depth in both.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace pairloss::cuda {

// Eight bf16, or four tf32, of one row: what a lane points ldmatrix to, and what one cp.async
// copies.
struct alignas(16) Octet {
  uint32_t words[4];
};

}  // namespace pairloss::cuda

#if defined(PAIRLOSS_CUDA_EMULATION)

#include "mma_emulation.h"

#else

namespace pairloss::cuda {
namespace {

__device__ __forceinline__ unsigned shared_address(const Octet* octet) {
  return static_cast<unsigned>(__cvta_generic_to_shared(octet));
}

// d += a b, in bf16 with float32 sums. Products are exact; what is added to d is aligned to the
// largest term and cut off there, so long sums drift towards 0: begin with d = 0 every few steps.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same in tf32: floats of which the last 13 bits are not looked at.
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The nearest bf16 of two floats, ties to even: that of `low` in the low half.
__device__ __forceinline__ uint32_t pack_bfloat16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Four matrices of 8 x 8: lane l names row l % 8 of matrix l / 8, and gets of each matrix the pair
// (l / 4, 2 (l % 4)), ...; transposed, the pair (2 (l % 4), l / 4), .... A tf32 stands where a pair
// would, (l / 4, l % 4), and cannot be transposed.
__device__ __forceinline__ void load_matrices(uint32_t (&fragment)[4], const Octet* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&fragment)[4],
                                                         const Octet* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

// Shared memory has it once the same thread has waited for the group that it was committed with;
// the other threads see it behind the next barrier. kKeep: the multiprocessor will copy it again
// soon, so it stays in the L1 cache, which otherwise it passes by.
template <bool kKeep = false>
__device__ __forceinline__ void copy_async(Octet* destination, const Octet* source) {
  if constexpr (kKeep)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;\n"
                 :
                 : "r"(shared_address(destination)), "l"(source)
                 : "memory");
  else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n"
                 :
                 : "r"(shared_address(destination)), "l"(source)
                 : "memory");
}

// Makes a group of the copies since the last one. A group may be empty.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Until at most the kPending groups committed last are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

}  // namespace
}  // namespace pairloss::cuda

#endif
