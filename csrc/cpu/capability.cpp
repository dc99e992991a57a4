#include "cpu/capability.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <utility>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pairloss::cpu {
namespace {

// Tiles, bfloat16 and what else every processor with tiles has, and the kernel's leave to use them:
// the state of the tiles is 8 KiB, which a Linux process has to ask for.
#if defined(__x86_64__)
bool has_amx() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25,
                     kPopulationCount = 1u << 14, kShift = 1u << 1, kCompress = 1u << 6;
  if ((d & kBfloat16) == 0 || (d & kTile) == 0 || (d & kInt8) == 0) return false;
  if ((c & kPopulationCount) == 0 || (c & kShift) == 0 || (c & kCompress) == 0) return false;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & 1u << 5) == 0)
    return false;                                             // AVX512-BF16
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// In multiply-adds: with less, AVX2 is enough; and AVX-512. Measured as training steps of batches
// with N = 8 to 128, K = 4 to 500.
constexpr double kWideWork = 3e5, kTileWork = 2e6;

struct Choice {
  Capability capability;
  bool asked_for;
};

Choice decide() {
  Capability best = Capability::baseline;
  for (Capability c : {Capability::avx2, Capability::avx512, Capability::amx}) {
    if (is_supported(c)) best = c;
  }
  const char* value = std::getenv("PAIRLOSS_CPU_CAPABILITY");
  const std::string_view wanted = value == nullptr ? "" : value;
  const std::pair<std::string_view, Capability> names[] = {{"default", Capability::baseline},
                                                           {"avx2", Capability::avx2},
                                                           {"avx512", Capability::avx512},
                                                           {"amx", Capability::amx}};
  for (const auto& [name, capability] : names) {
    if (wanted == name && is_supported(capability)) return {capability, true};
  }
  return {best, false};
}

const Choice& choice() {
  static const Choice decided = decide();
  return decided;
}

}  // namespace

bool is_supported(Capability capability) {
  switch (capability) {
#if defined(__x86_64__)
    case Capability::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Capability::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
    case Capability::amx:
      return is_supported(Capability::avx512) && has_amx();
#else
    case Capability::avx2:
    case Capability::avx512:
    case Capability::amx:
      return false;
#endif
    case Capability::baseline:
      return true;
  }
  return false;
}

Capability capability() { return choice().capability; }

Capability capability_for(double work) {
  const auto [best, asked_for] = choice();
  if (asked_for || work >= kTileWork) return best;
  return std::min(best, work < kWideWork ? Capability::avx2 : Capability::avx512);
}

const Kernels& kernels_for(Capability capability) {
  switch (capability) {
#if defined(__x86_64__)
    case Capability::amx:
      return amx::kernels;
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
