// Between the framework's tensors and streams, and the kernels' pointers: what the operators' files
// share.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <exception>

#include "check.h"

namespace pairloss::cuda {

// body(scalar_t()) for the element type of the logits.
template <typename Body>
void dispatch(const Tensor& logits, Body body) {
  switch (logits.scalar_type()) {
    case ScalarType::Double:
      return body(double());
    case ScalarType::Float:
      return body(float());
    case ScalarType::Half:
      return body(torch::headeronly::Half());
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16());
    default:
      STD_TORCH_CHECK(false, "checked() lets no other type pass");
  }
}

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// What a call needs besides its results.
inline Tensor new_workspace(const Tensor& logits, int64_t bytes) {
  try {
    return torch::stable::new_empty(logits, {bytes}, ScalarType::Byte);
  } catch (const std::exception& error) {  // of older releases of torch, which does not say why
    STD_TORCH_CHECK(false, "CUDA out of memory: pairloss tried to allocate ", bytes,
                    " bytes of workspace. ", error.what());
  }
}

}  // namespace pairloss::cuda
