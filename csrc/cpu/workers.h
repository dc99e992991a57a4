// How a kernel spreads its work, whoever owns the threads: the framework's pool in the library,
// std::thread in the white-box tests, nobody in a serial call.
#pragma once

#include <atomic>
#include <cstdint>

namespace pairloss::cpu {

struct Workers {
  int64_t count = 1;
  // Calls body(context, worker) for worker = 0 .. count - 1, in any order, at once or one after the
  // other.
  void (*launch)(int64_t count, void (*body)(void* context, int64_t worker),
                 void* context) = nullptr;
};

// body(worker) on every worker.
template <class Body>
void on_every_worker(const Workers& workers, Body&& body) {
  if (workers.count <= 1) {
    body(int64_t{0});
    return;
  }
  workers.launch(
      workers.count, [](void* context, int64_t worker) { (*static_cast<Body*>(context))(worker); },
      &body);
}

// body(task) for task = 0 .. tasks - 1, handed out one by one.
template <class Body>
void for_each_task(const Workers& workers, int64_t tasks, Body&& body) {
  std::atomic<int64_t> next{0};
  on_every_worker(tasks > 1 ? workers : Workers{}, [&](int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task);
  });
}

}  // namespace pairloss::cpu
