// How a kernel spreads its work, whoever owns the threads: the framework's pool in the library,
// std::thread in the white-box tests, nobody in a serial call.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

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

// Until done(), which another thread is about to make true: first without the system's help, which
// takes longer than most of what is waited for.
template <class Done>
void wait_until(Done&& done) {
  for (int64_t attempts = 0; !done(); ++attempts) {
    if (attempts > 100) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

// Tasks 0 .. tasks - 1, handed out one by one to the workers who take part. So several stages can
// follow each other in one on_every_worker, which costs a microsecond: who finds no task left goes
// on, and waits where it needs what the others are still at. All that is waited for has been handed
// out before: there is no deadlock, also when the workers come one after the other.
class Stage {
 public:
  Stage(const Workers& workers, int64_t tasks) : workers_(workers.count), tasks_(tasks) {
    if (workers_ <= 1) return;  // a small batch: nothing is allocated
    next_.reset(new Next[workers_]);
    for (int64_t w = 0; w < workers_; ++w) next_[w].task = first_of_worker(w, workers_, tasks);
  }

  // body(worker, task) for every task that nobody else takes.
  template <class Body>
  void work(int64_t worker, Body&& body) {
    if (workers_ <= 1) {
      for (int64_t task = 0; task < tasks_; ++task) body(worker, task);
      return;
    }
    int64_t done = 0;
    for (int64_t i = 0; i < workers_; ++i) {
      const int64_t owner = (worker + i) % workers_,
                    end = first_of_worker(owner + 1, workers_, tasks_);
      for (int64_t task;
           (task = next_[owner].task.fetch_add(1, std::memory_order_relaxed)) < end;) {
        body(worker, task);
        ++done;
      }
    }
    done_.fetch_add(done, std::memory_order_release);
  }

  // Until everybody's tasks are done. After work.
  void wait() const {
    if (workers_ <= 1) return;
    wait_until([&] { return done_.load(std::memory_order_acquire) == tasks_; });
  }

 private:
  struct alignas(64) Next {
    std::atomic<int64_t> task;
  };

  int64_t workers_, tasks_;
  std::unique_ptr<Next[]> next_;
  std::atomic<int64_t> done_{0};
};

// body(worker, task) for task = 0 .. tasks - 1.
template <class Body>
void for_each_task(const Workers& workers, int64_t tasks, Body&& body) {
  const Workers wanted = tasks > 1 ? workers : Workers{};
  Stage stage(wanted, tasks);
  on_every_worker(wanted, [&](int64_t worker) { stage.work(worker, body); });
}

}  // namespace pairloss::cpu
