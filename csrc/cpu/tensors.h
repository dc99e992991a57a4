// Between the framework's tensors and threads, and the kernels' pointers and workers: what the
// operators' files share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "cpu/pair_kl_hinge.h"
#include "cpu/workers.h"

namespace pairloss::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// For so many multiply-adds: the framework's threads, or the caller's alone.
inline Workers workers_for(double work) {
  if (work < kSerialWork) return {};
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t count, void (*body)(void*, int64_t), void* context) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker) body(context, worker);
            });
          }};
}

inline Element element_of(const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Double:
      return Element::float64;
    case ScalarType::Half:
      return Element::float16;
    case ScalarType::BFloat16:
      return Element::bfloat16;
    default:
      return Element::float32;
  }
}

// x, float64 or float32, at a flat index.
inline void set(Tensor& x, int64_t index, double value) {
  if (x.scalar_type() == ScalarType::Double) {
    static_cast<double*>(x.mutable_data_ptr())[index] = value;
  } else {
    static_cast<float*>(x.mutable_data_ptr())[index] = static_cast<float>(value);
  }
}

}  // namespace pairloss::cpu
