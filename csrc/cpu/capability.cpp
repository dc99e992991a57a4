#include "cpu/capability.h"

#include <cstdlib>
#include <string_view>

namespace pairloss::cpu {
namespace {

Capability decide() {
  Capability best = Capability::baseline;
  for (Capability c : {Capability::avx2, Capability::avx512}) {
    if (is_supported(c)) best = c;
  }
  const char* value = std::getenv("PAIRLOSS_CPU_CAPABILITY");
  const std::string_view wanted = value == nullptr ? "" : value;
  if (wanted == "default") return Capability::baseline;
  if (wanted == "avx2" && is_supported(Capability::avx2)) return Capability::avx2;
  if (wanted == "avx512" && is_supported(Capability::avx512)) return Capability::avx512;
  return best;
}

}  // namespace

bool is_supported(Capability capability) {
  switch (capability) {
#if defined(__x86_64__)
    case Capability::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Capability::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    case Capability::avx2:
    case Capability::avx512:
      return false;
#endif
    case Capability::baseline:
      return true;
  }
  return false;
}

Capability capability() {
  static const Capability decided = decide();
  return decided;
}

const Kernels& kernels_for(Capability capability) {
  switch (capability) {
#if defined(__x86_64__)
    case Capability::avx512:
      return avx512::kernels;
    case Capability::avx2:
      return avx2::kernels;
#endif
    default:
      return baseline::kernels;
  }
}

}  // namespace pairloss::cpu
