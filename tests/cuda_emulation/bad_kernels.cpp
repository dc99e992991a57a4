// Kernels that are wrong in one way each, and two that are right: a check that nobody has seen fail
// checks nothing.
#include <map>

#include "cuda/launch.h"

namespace {

using pairloss::cuda::launch;

constexpr int kThreads = 64;
constexpr unsigned kAllLanes = 0xffffffffu;

// Sums 64 numbers. Each flag leaves out one thing that it needs.
template <bool kFirstBarrier, bool kSecondBarrier>
void sum_kernel(int* out) {
  PAIRLOSS_SHARED(int, value, [kThreads]);
  for (int round = 0; round < 2; ++round) {
    value[threadIdx.x] = static_cast<int>(threadIdx.x) + round;
    if (kFirstBarrier) __syncthreads();
    int sum = 0;
    for (int t = 0; t < kThreads; ++t) sum += value[t];
    if (kSecondBarrier) __syncthreads();
    out[threadIdx.x] = sum;
  }
}

void divergent_kernel(int*) {
  if (threadIdx.x < 40)
    __syncthreads();
  else
    __syncthreads();
}

void early_return_kernel(int*) {
  if (threadIdx.x == 7) return;
  __syncthreads();
}

void divergent_warp_kernel(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 1);
}

void absent_lane_kernel(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1, 16);
}

void uninitialized_kernel(int* out) {
  PAIRLOSS_SHARED(int, value, [kThreads]);
  if (threadIdx.x > 0) value[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = value[threadIdx.x / 2];
}

void outside_kernel(int* out) {
  PAIRLOSS_SHARED(int, value, [2][kThreads]);
  value[0][threadIdx.x + 1] = 1;  // the last one is value[1][0] to the hardware
  out[threadIdx.x] = 0;
}

void guard_kernel(int* out) { out[kThreads] = 1; }

void warp_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int sum = lane;
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  const unsigned odd = __ballot_sync(kAllLanes, lane % 2);
  const int neighbour = __shfl_down_sync(kAllLanes, lane, 1u);
  const int broadcast = __shfl_sync(kAllLanes, lane, 5);
  const bool votes = __any_sync(kAllLanes, lane == 3) && !__all_sync(kAllLanes, lane == 3) &&
                     __syncthreads_or(lane == 3);
  __syncwarp();
  out[threadIdx.x] = sum == 496 && odd == 0xaaaaaaaau && neighbour == (lane < 31 ? lane + 1 : 31) &&
                     broadcast == 5 && votes;
}

void run(void (*kernel)(int*), int expected) {
  std::vector<int> buffer(kThreads + 16);
  pairloss::cuda::guard_workspace(buffer.data() + kThreads, 16 * sizeof(int));
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(buffer.data() + kThreads,
                              16 * sizeof(int));  // here the guard's own check is tested
#endif
  launch(kernel, dim3(2), kThreads, nullptr, buffer.data());
  emulation::check_guards();
  for (int t = 0; t < kThreads; ++t)
    if (buffer[t] != expected) throw emulation::Error("wrong result");
}

}  // namespace

extern "C" const char* run_kernel(const char* name, int64_t seed) {
  const std::map<std::string, std::pair<void (*)(int*), int>> kernels = {
      {"right", {sum_kernel<true, true>, 64 * 63 / 2 + 64}},
      {"warp", {warp_kernel, 1}},
      {"no first barrier", {sum_kernel<false, true>, 0}},
      {"no second barrier", {sum_kernel<true, false>, 0}},
      {"divergent", {divergent_kernel, 0}},
      {"early return", {early_return_kernel, 0}},
      {"divergent warp", {divergent_warp_kernel, 0}},
      {"absent lane", {absent_lane_kernel, 0}},
      {"uninitialized", {uninitialized_kernel, 0}},
      {"outside", {outside_kernel, 0}},
      {"guard", {guard_kernel, 0}},
  };
  static std::string message;
  try {
    emulation::Machine::get().seed = static_cast<unsigned>(seed);
    const auto& [kernel, expected] = kernels.at(name);
    run(kernel, expected);
    return nullptr;
  } catch (const std::exception& error) {
    emulation::guards().clear();
    message = error.what();
    return message.c_str();
  }
}
