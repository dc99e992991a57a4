// The instructions of csrc/cuda/mma.cuh, and the arithmetic of split.cuh, one by one, behind a C
// interface for ctypes (see test_mma.py).
#include "cuda/mma.cuh"

#include "cuda/split.cuh"

namespace {

using namespace pairloss::cuda;

constexpr int kLanes = 32;

// out[lane][4]: what the lane gets of four matrices of 8 x 8 elements, in[32] rows.
template <bool kTransposed>
void load_kernel(const Octet* in, uint32_t* out) {
  PAIRLOSS_SHARED(Octet, stage, [kLanes]);
  copy_async(&stage[threadIdx.x], in + threadIdx.x);
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  uint32_t fragment[4];
  if (kTransposed)
    load_matrices_transposed(fragment, &stage[threadIdx.x]);
  else
    load_matrices(fragment, &stage[threadIdx.x]);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = fragment[i];
}

// Fragments as they are: a (lanes, 4), b (lanes, 2), d (lanes, 4).
template <bool kTfloat32>
void multiply_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  const uint32_t* mine = a + threadIdx.x * 4;
  const uint32_t fragment[4] = {mine[0], mine[1], mine[2], mine[3]};
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[threadIdx.x * 4 + i];
  if (kTfloat32)
    mma_m16n8k8(sums, fragment, b[threadIdx.x * 2], b[threadIdx.x * 2 + 1]);
  else
    mma_m16n8k16(sums, fragment, b[threadIdx.x * 2], b[threadIdx.x * 2 + 1]);
  for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = sums[i];
}

template <typename Part, int kPlanes>
void split_all(int64_t count, const float* x, float* planes) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t of_x[kPlanes];
    split<Part>(x[i], of_x);
    for (int plane = 0; plane < kPlanes; ++plane)
      planes[plane * count + i] = Part::value(of_x[plane]);
  }
}

// ---- two groups of copies, and what can go wrong with them ----

enum class Fault {
  none,
  no_wait,
  too_few_waited_for,
  no_barrier,
  overwritten,
  left_behind,
  misaligned,
  little_memory,
  half_warp,
  conflict
};

template <Fault kFault>
void copy_kernel(const Octet* in, uint32_t* out) {
  PAIRLOSS_DYNAMIC_SHARED(Octet, stage, [2][kLanes]);
  const Octet* source = in + threadIdx.x;
  if (kFault == Fault::misaligned)
    source = reinterpret_cast<const Octet*>(reinterpret_cast<const char*>(source) + 8);
  copy_async(&stage[0][threadIdx.x], source);
  commit_copies();
  copy_async(&stage[1][threadIdx.x], source);
  commit_copies();
  if (kFault == Fault::overwritten) stage[1][threadIdx.x] = Octet{};
  if (kFault != Fault::no_wait) wait_for_copies<1>();
  if (kFault != Fault::no_barrier) __syncthreads();
  uint32_t fragment[4];
  if (kFault != Fault::half_warp || threadIdx.x < 16)
    load_matrices(fragment, &stage[kFault == Fault::too_few_waited_for][threadIdx.x]);
  if (kFault == Fault::conflict) load_matrices(fragment, &stage[0][threadIdx.x / 2]);
  if (kFault == Fault::left_behind) return;
  wait_for_copies<0>();
  __syncthreads();
  load_matrices(fragment, &stage[1][threadIdx.x]);
  out[threadIdx.x] = fragment[0];
}

using CopyKernel = void (*)(const Octet*, uint32_t*);
constexpr CopyKernel kCopyKernels[] = {copy_kernel<Fault::none>,
                                       copy_kernel<Fault::no_wait>,
                                       copy_kernel<Fault::too_few_waited_for>,
                                       copy_kernel<Fault::no_barrier>,
                                       copy_kernel<Fault::overwritten>,
                                       copy_kernel<Fault::left_behind>,
                                       copy_kernel<Fault::misaligned>,
                                       copy_kernel<Fault::little_memory>,
                                       copy_kernel<Fault::half_warp>,
                                       copy_kernel<Fault::conflict>};

}  // namespace

extern "C" {

void load(const void* in, int64_t transposed, uint32_t* out) {
  launch(transposed ? load_kernel<true> : load_kernel<false>, dim3(1), kLanes, nullptr,
         static_cast<const Octet*>(in), out);
}

void multiply(const uint32_t* a, const uint32_t* b, float* d, int64_t tfloat32) {
  launch(tfloat32 ? multiply_kernel<true> : multiply_kernel<false>, dim3(1), kLanes, nullptr, a, b,
         d);
}

// Null, or what the emulation says.
const char* copy(int64_t fault, int64_t seed, const void* in, uint32_t* out) {
  static std::string message;
  try {
    emulation::Machine::get().seed = static_cast<unsigned>(seed);
    const bool little = static_cast<Fault>(fault) == Fault::little_memory;
    launch_with_shared(kCopyKernels[fault], dim3(1), kLanes,
                       (little ? 1 : 2) * kLanes * sizeof(Octet), nullptr,
                       static_cast<const Octet*>(in), out);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

// planes: (kPlanes, count), the parts of x as floats.
void split_into_bfloat16(int64_t count, const float* x, float* planes) {
  split_all<Bfloat16, 3>(count, x, planes);
}

void split_into_tfloat32(int64_t count, const float* x, float* planes) {
  split_all<Tfloat32, 2>(count, x, planes);
}

}  // extern "C"
