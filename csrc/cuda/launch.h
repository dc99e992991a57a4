// The seam between the kernels and the machine that runs them. Every launch goes through launch(),
// and every shared-memory array is declared with PAIRLOSS_SHARED, so that the same kernel source
// also runs on a CPU: with PAIRLOSS_CUDA_EMULATION defined, tests/cuda_emulation/ supplies these
// names and the CUDA built-ins.
#pragma once

#if defined(PAIRLOSS_CUDA_EMULATION)

#include "cuda_emulation.h"

#else

#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

#include <cstdint>

// PAIRLOSS_SHARED(float, tile, [16][68]). The alignment lets the compiler load four floats at a
// time.
#define PAIRLOSS_SHARED(type, name, extents) __shared__ __align__(16) type name extents

// The one array of a kernel that is launched with launch_with_shared(): beyond the 48 KB that all
// kernels may have.
#define PAIRLOSS_DYNAMIC_SHARED(type, name, extents)              \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  auto& name = *reinterpret_cast<type(*) extents>(dynamic_shared)

namespace pairloss::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream,
            const Arguments&... arguments) {
  kernel<<<grid, threads, 0, stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// shared_bytes: of dynamic shared memory. The attribute is the function's on the current device,
// and setting it is no operation of the stream.
template <typename... Parameters, typename... Arguments>
void launch_with_shared(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                        cudaStream_t stream, const Arguments&... arguments) {
  const cudaError_t set = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(shared_bytes));
  if (set != cudaSuccess) cudaGetLastError();  // else the next launch would report it once more
  STD_CUDA_CHECK(set);
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// The emulation puts a guard behind each of the workspace's buffers and checks that it stays
// untouched.
constexpr int64_t kWorkspaceGuardBytes = 0;
inline void guard_workspace(void*, int64_t) {}

}  // namespace pairloss::cuda

#endif
