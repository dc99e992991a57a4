// How a kernel spreads its work, whoever owns the threads: the framework's pool in the library,
// std::thread in the white-box tests, nobody in a serial call.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

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

// The first of `count` things that are worker `worker`'s own, of `workers`. A worker begins with
// its own and then helps the others: so it finds in its cache what it wrote one stage before.
constexpr int64_t first_of_worker(int64_t worker, int64_t workers, int64_t count) {
  return worker * count / workers;
}

// body(worker, task) for task = 0 .. tasks - 1, handed out one by one.
template <class Body>
void for_each_task(const Workers& workers, int64_t tasks, Body&& body) {
  if (workers.count <= 1 || tasks <= 1) {  // a small batch: nothing is allocated
    for (int64_t task = 0; task < tasks; ++task) body(int64_t{0}, task);
    return;
  }
  struct alignas(64) Next {
    std::atomic<int64_t> task;
  };
  const int64_t count = workers.count;
  const std::unique_ptr<Next[]> next(new Next[count]);
  for (int64_t w = 0; w < count; ++w) next[w].task = first_of_worker(w, count, tasks);
  on_every_worker(workers, [&](int64_t worker) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t owner = (worker + i) % count, end = first_of_worker(owner + 1, count, tasks);
      for (int64_t task; (task = next[owner].task.fetch_add(1, std::memory_order_relaxed)) < end;) {
        body(worker, task);
      }
    }
  });
}

}  // namespace pairloss::cpu
