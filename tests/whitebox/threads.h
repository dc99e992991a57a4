// Workers of the tests' own.
#pragma once

#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/workers.h"

namespace pairloss::cpu {

// "threads": one std::thread each. "serial", "reversed": one after the other on this thread, which
// is allowed too, for a pool may be busy.
inline Workers make_workers(int64_t count, const std::string& how) {
  if (how == "threads") {
    return {count, [](int64_t workers, void (*body)(void*, int64_t), void* context) {
              std::vector<std::thread> threads;
              for (int64_t w = 0; w < workers; ++w) threads.emplace_back(body, context, w);
              for (std::thread& thread : threads) thread.join();
            }};
  }
  if (how == "serial") {
    return {count, [](int64_t workers, void (*body)(void*, int64_t), void* context) {
              for (int64_t w = 0; w < workers; ++w) body(context, w);
            }};
  }
  if (how == "reversed") {
    return {count, [](int64_t workers, void (*body)(void*, int64_t), void* context) {
              for (int64_t w = workers; w > 0; --w) body(context, w - 1);
            }};
  }
  throw std::invalid_argument("no such workers: " + how);
}

}  // namespace pairloss::cpu
