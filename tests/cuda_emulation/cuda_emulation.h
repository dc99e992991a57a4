// CUDA's execution model on one CPU thread, for running the kernels' own source without a GPU.
//
// csrc/cuda/launch.h includes this file instead of the CUDA runtime where PAIRLOSS_CUDA_EMULATION
// is defined. Blocks run one after the other; every thread of a block is a fiber that runs until it
// reaches a barrier or a warp primitive. What CUDA leaves undefined, and a GPU may or may not
// punish, is an error here:
//
//   - a barrier that not all threads of the block reach, or that they reach at different places;
//   - a warp primitive that not all lanes of its mask reach;
//   - two threads that touch the same element of shared memory between two barriers, one of them
//   writing;
//   - reading an element of shared memory that no thread of the block has written (each block
//   starts with none);
//   - an index outside a shared array (each extent is checked on its own), a misuse of the
//   workspace's guards.
//
// Out-of-bounds global memory is AddressSanitizer's part. Races between blocks, and anything else
// that depends on the order of threads or blocks, show by running in several orders
// (Machine::seed): the results must agree to the bit.
//
// mma_emulation.h adds the instructions around the tensor cores. Not emulated, because the kernels
// do not use it: clusters. A kernel that exchanges data through shared memory under __syncwarp
// alone would be reported as a race.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

constexpr int kWarpSize = 32;

class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class State { runnable, at_barrier, at_warp_primitive, finished };

// A point to switch to. ucontext starts a fiber; from then on the compiler's own setjmp is several
// times faster, because it leaves the signal mask alone. Nor does AddressSanitizer see it: to any
// other switch it answers by clearing all that it knows of a stack.
struct Context {
  ucontext_t ucontext;
  void* jump[5];
  bool started = false;

  [[gnu::noinline, gnu::no_sanitize_address]] void switch_to(Context& next) {
    started = true;
    if (__builtin_setjmp(jump) != 0) return;
    if (next.started) __builtin_longjmp(next.jump, 1);
    setcontext(&next.ucontext);
  }
};

// The asynchronous copies of one thread. They happen as late as they may: when it waits for them.
class Copies {
 public:
  void push(std::function<void()> copy) { groups_.back().push_back(std::move(copy)); }
  void commit() { groups_.emplace_back(); }
  void wait(size_t pending) {
    for (; groups_.size() > pending + 1; groups_.pop_front())
      for (const auto& copy : groups_.front()) copy();
  }
  bool none() const {
    return std::all_of(groups_.begin(), groups_.end(), [](const auto& g) { return g.empty(); });
  }
  void clear() { groups_.resize(1), groups_.front().clear(); }

 private:
  std::deque<std::vector<std::function<void()>>> groups_{1};  // the last one is still open
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  State state;
  int line;                    // of the barrier or primitive it waits at
  unsigned mask;               // lanes that the primitive waits for
  uint64_t value;              // what the thread brings to the barrier or primitive
  uint64_t values[kWarpSize];  // what the lanes brought, once released
  Copies copies;
  void* fake_stack;  // AddressSanitizer's
};

class Machine {
 public:
  static Machine& get() {
    static Machine machine;
    return machine;
  }

  // Order of the blocks of a grid and of the threads of a block: 0 ascending, 1 descending, else
  // shuffled.
  unsigned seed = 0;
  int64_t launches = 0;

  template <typename Body>
  void run_grid(dim3 grid, int threads, size_t dynamic_shared_bytes, Body body) {
    if (threads < 1 || threads > 1024 || threads % kWarpSize != 0)
      throw Error("launch: expected whole warps, at most 1024 threads, got " +
                  std::to_string(threads));
    if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffffu || grid.y > 65535 ||
        grid.z > 65535)
      throw Error("launch: invalid grid");
    if (dynamic_shared_bytes > kMostSharedBytes) throw Error("launch: too much shared memory");
    dynamic_shared_bytes_ = dynamic_shared_bytes;
    ++launches;
    gridDim = grid;
    blockDim = dim3(static_cast<unsigned>(threads));
    body_ = body;
    for (const int64_t block : order(int64_t{1} * grid.x * grid.y * grid.z)) {
      blockIdx = dim3(static_cast<unsigned>(block % grid.x),
                      static_cast<unsigned>(block / grid.x % grid.y),
                      static_cast<unsigned>(block / grid.x / grid.y));
      try {
        run_block(threads);
      } catch (...) {
        abandon();
        throw;
      }
    }
  }

  // ---- called by threads ----

  // The or of all threads' predicates.
  bool barrier(bool predicate, int line) {
    wait(State::at_barrier, line, 0, predicate);
    return current().value != 0;
  }

  const uint64_t* exchange(uint64_t value, unsigned mask, int line) {
    if (!(mask >> (current_ % kWarpSize) & 1))
      fail("a warp primitive whose mask leaves out the calling lane", line);
    wait(State::at_warp_primitive, line, mask, value);
    return current().values;
  }

  Copies& copies() { return current().copies; }

  void need_dynamic_shared(size_t bytes, int line) const {
    if (bytes > dynamic_shared_bytes_) fail("the launch gives too little shared memory", line);
  }

  [[noreturn]] void fail(const std::string& what, int line) const { throw Error(what + at(line)); }

  // For shared memory: two accesses in the same epoch have no barrier between them.
  int64_t epoch() const { return epoch_; }
  int64_t first_epoch_of_block() const { return first_epoch_of_block_; }
  int thread() const { return current_; }

 private:
  static constexpr size_t kStackBytes = 64 * 1024;
  static constexpr size_t kMostSharedBytes = 99 * 1024;  // of a block on sm_86, 89 and 120

  Fiber& current() { return *fibers_[current_]; }

  std::string at(int line) const {
    auto triple = [](dim3 d) {
      return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) +
             ")";
    };
    return (line > 0 ? ", line " + std::to_string(line) : std::string()) + ", block " +
           triple(blockIdx) + ", thread " + std::to_string(current_);
  }

  std::vector<int64_t> order(int64_t count) const {
    std::vector<int64_t> indices(count);
    std::iota(indices.begin(), indices.end(), int64_t{0});
    if (seed == 1) std::reverse(indices.begin(), indices.end());
    if (seed > 1) std::shuffle(indices.begin(), indices.end(), std::mt19937(seed));
    return indices;
  }

  void run_block(int threads) {
    first_epoch_of_block_ = ++epoch_;
    for (int t = 0; t < threads; ++t) start(t);
    const std::vector<int64_t> turns = order(threads);
    for (;;) {
      for (const int64_t t : turns)
        if (fibers_[t]->state == State::runnable) resume(static_cast<int>(t));
      if (release_warps(threads)) continue;
      const auto finished = [](const auto& fiber) { return fiber->state == State::finished; };
      if (std::all_of(fibers_.begin(), fibers_.begin() + threads, finished)) return;
      release_block(threads);
    }
  }

  // True if a warp primitive was completed.
  bool release_warps(int threads) {
    bool released = false;
    for (int t = 0; t < threads; ++t) {
      if (fibers_[t]->state != State::at_warp_primitive) continue;
      const auto* const warp = &fibers_[t / kWarpSize * kWarpSize];
      const unsigned mask = fibers_[t]->mask;
      const int line = fibers_[t]->line;
      bool complete = true;
      uint64_t values[kWarpSize];
      for (int lane = 0; lane < kWarpSize; ++lane) {
        const Fiber& other = *warp[lane];
        values[lane] = other.value;
        if (mask >> lane & 1)
          complete &=
              other.state == State::at_warp_primitive && other.mask == mask && other.line == line;
      }
      if (!complete) continue;
      released = true;
      for (int lane = 0; lane < kWarpSize; ++lane) {
        if (!(mask >> lane & 1)) continue;
        std::memcpy(warp[lane]->values, values, sizeof(values));
        warp[lane]->state = State::runnable;
      }
    }
    return released;
  }

  void release_block(int threads) {
    uint64_t any = 0;
    for (int t = 0; t < threads; ++t) {
      const Fiber& fiber = *fibers_[t];
      current_ = t;
      if (fiber.state == State::at_warp_primitive)
        fail("a warp primitive that not all lanes of its mask reach", fiber.line);
      if (fiber.state == State::finished)
        fail("a thread has returned while others wait at a barrier", 0);
      if (fiber.line != fibers_[0]->line)
        fail("threads wait at different barriers, here and at line " +
                 std::to_string(fibers_[0]->line),
             fiber.line);
      any |= fiber.value;
    }
    ++epoch_;
    for (int t = 0; t < threads; ++t) {
      fibers_[t]->value = any;
      fibers_[t]->state = State::runnable;
    }
  }

  void wait(State state, int line, unsigned mask, uint64_t value) {
    Fiber& fiber = current();
    fiber.state = state;
    fiber.line = line;
    fiber.mask = mask;
    fiber.value = value;
    leave();
  }

  // Makes the thread ready for a block. A fiber serves block after block.
  void start(int t) {
    if (static_cast<size_t>(t) == fibers_.size()) {
      fibers_.push_back(std::make_unique<Fiber>());
      Fiber& fiber = *fibers_.back();
      fiber.stack.reset(new char[kStackBytes]);
      getcontext(&fiber.context.ucontext);
      fiber.context.ucontext.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.ucontext.uc_stack.ss_size = kStackBytes;
      fiber.context.ucontext.uc_link = nullptr;
      makecontext(&fiber.context.ucontext, &Machine::enter, 0);
    }
    fibers_[t]->state = State::runnable;
    fibers_[t]->copies.clear();
  }

  static void enter() {
    Machine& machine = get();
    machine.arrive(nullptr);
    for (;;) {
      try {
        machine.body_();
        if (!machine.copies().none()) machine.fail("a thread leaves copies behind", 0);
      } catch (const std::exception& error) {
        machine.error_ = error.what();
      }
      machine.current().state = State::finished;
      machine.leave();
    }
  }

  // The other threads' fibers are in the middle of the kernel, so none can be used again.
  void abandon() {
#if defined(__SANITIZE_ADDRESS__)
    for (const auto& fiber : fibers_) ASAN_UNPOISON_MEMORY_REGION(fiber->stack.get(), kStackBytes);
#endif
    fibers_.clear();
  }

  // The scheduler's side of a switch.
  void resume(int t) {
    current_ = t;
    threadIdx = dim3(static_cast<unsigned>(t));
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fibers_[t]->stack.get(), kStackBytes);
#endif
    scheduler_.switch_to(fibers_[t]->context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    if (!error_.empty()) throw Error(std::exchange(error_, {}));
  }

  // The fiber's side.
  void leave() {
    Fiber& fiber = current();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fiber.fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
    fiber.context.switch_to(scheduler_);
    arrive(fiber.fake_stack);
  }

  void arrive([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  std::function<void()> body_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  Context scheduler_;
  int current_ = 0;
  int64_t epoch_ = 0, first_epoch_of_block_ = 0;
  size_t dynamic_shared_bytes_ = 0;
  std::string error_;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
};

// ---- shared memory ----

template <typename T>
struct Cell {
  static constexpr int kNobody = -1, kSeveral = -2;
  T value;
  int writer = kNobody, reader = kNobody;
  int64_t written = -1, read = -1;  // epochs
  int64_t awaited = -1;             // epoch in which a copy set out that has not arrived
};

template <typename T>
class SharedPointer;

// What indexing a shared array yields: it knows a read from a write.
template <typename T>
class Reference {
 public:
  Reference(Cell<T>& cell, int64_t index, const char* name, int line)
      : cell_(cell), index_(index), name_(name), line_(line) {}
  Reference(const Reference& other) = default;

  SharedPointer<T> operator&() const { return SharedPointer<T>(*this); }

  operator T() const {
    const Machine& machine = Machine::get();
    check_arrival("is read");
    if (cell_.written < machine.first_epoch_of_block()) complain("is read before it is written");
    if (cell_.written == machine.epoch() && cell_.writer != machine.thread())
      complain("is read with no barrier after the write of thread " + std::to_string(cell_.writer));
    const bool alone = cell_.read != machine.epoch() || cell_.reader == machine.thread();
    cell_.reader = alone ? machine.thread() : Cell<T>::kSeveral;
    cell_.read = machine.epoch();
    return cell_.value;
  }

  const Reference& operator=(T value) const {
    check_write();
    set(value);
    return *this;
  }
  const Reference& operator=(const Reference& other) const { return *this = static_cast<T>(other); }

 private:
  friend SharedPointer<T>;

  void check_arrival(const char* what) const {
    if (cell_.awaited >= Machine::get().first_epoch_of_block())
      complain(std::string(what) + " while a copy is on its way to it");
  }

  void check_write() const {
    const Machine& machine = Machine::get();
    check_arrival("is written");
    if (cell_.written == machine.epoch() && cell_.writer != machine.thread())
      complain("is written with no barrier after the write of thread " +
               std::to_string(cell_.writer));
    if (cell_.read == machine.epoch() && cell_.reader != machine.thread())
      complain("is written with no barrier after the read of another thread");
  }

  void set(const T& value) const {
    cell_.writer = Machine::get().thread();
    cell_.written = Machine::get().epoch();
    cell_.value = value;
  }

  [[noreturn]] void complain(const std::string& what) const {
    Machine::get().fail(
        std::string("shared memory: an element of ") + name_ + " " + what + ", declared at", line_);
  }

  Cell<T>& cell_;
  int64_t index_;  // in the last extent
  const char* name_;
  int line_;
};

// The address of an element, for instructions that take one.
template <typename T>
class SharedPointer {
 public:
  explicit SharedPointer(const Reference<T>& element) : element_(element) {}

  // By an instruction of the whole warp: what any thread has just written may not be there yet.
  T read_for_warp() const {
    Cell<T>& cell = element_.cell_;
    if (cell.written == Machine::get().epoch())
      element_.complain("is read with no barrier after the write of thread " +
                        std::to_string(cell.writer));
    const T value = element_;
    cell.reader = Cell<T>::kSeveral;
    return value;
  }

  int64_t index() const { return element_.index_; }

  // A copy to the element sets out, and arrives.
  void announce() const {
    element_.check_write();
    element_.cell_.awaited = Machine::get().epoch();
  }
  void arrive(const T& value) const {
    element_.cell_.awaited = -1;
    element_.set(value);
  }

 private:
  Reference<T> element_;
};

template <typename Extents>
class Shared;

template <typename T, size_t kCount>
class Shared<T[kCount]> {
 public:
  Shared(const char* name, int line) : name_(name), line_(line) {}
  Reference<T> operator[](int64_t index) const {
    if (index < 0 || index >= static_cast<int64_t>(kCount))
      Machine::get().fail(std::string("shared memory: index ") + std::to_string(index) + " of " +
                              name_ + " is outside its extent of " + std::to_string(kCount) +
                              ", declared at",
                          line_);
    return Reference<T>(cells_[index], index, name_, line_);
  }

 private:
  mutable Cell<T> cells_[kCount];
  const char* name_;
  int line_;
};

template <typename T, size_t kRows, size_t kColumns>
class Shared<T[kRows][kColumns]> {
 public:
  Shared(const char* name, int line) : name_(name), line_(line) {
    rows_.reserve(kRows);
    // In place: a row may be larger than what is left of a fiber's stack.
    for (size_t row = 0; row < kRows; ++row) rows_.emplace_back(name, line);
  }
  const Shared<T[kColumns]>& operator[](int64_t index) const {
    if (index < 0 || index >= static_cast<int64_t>(kRows))
      Machine::get().fail(std::string("shared memory: index ") + std::to_string(index) + " of " +
                              name_ + " is outside its extent of " + std::to_string(kRows) +
                              ", declared at",
                          line_);
    return rows_[index];
  }

 private:
  const char* name_;
  int line_;
  std::vector<Shared<T[kColumns]>> rows_;
};

// ---- warp primitives ----

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, int line) {
  Machine& machine = Machine::get();
  const uint64_t* values = machine.exchange(to_bits(value), mask, line);
  if (source < 0 || source >= kWarpSize || !(mask >> source & 1))
    machine.fail("a shuffle from lane " + std::to_string(source) + ", which takes no part", line);
  return from_bits<T>(values[source]);
}

inline int lane() { return static_cast<int>(threadIdx.x % kWarpSize); }

// ---- the workspace's guards ----

struct Guard {
  unsigned char* begin;
  int64_t bytes;
};

inline std::vector<Guard>& guards() {
  static std::vector<Guard> all;
  return all;
}

// To be called when all launches are done.
inline void check_guards() {
  for (const Guard& guard : std::exchange(guards(), {})) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(guard.begin, guard.bytes);
#endif
    if (std::any_of(guard.begin, guard.begin + guard.bytes,
                    [](unsigned char byte) { return byte != 0xa5; }))
      throw Error("workspace: something wrote behind a buffer");
  }
}

}  // namespace emulation

#define PAIRLOSS_SHARED(type, name, extents) \
  static const emulation::Shared<type extents> name(#name, __LINE__)
#define PAIRLOSS_DYNAMIC_SHARED(type, name, extents) \
  PAIRLOSS_SHARED(type, name, extents);              \
  emulation::Machine::get().need_dynamic_shared(sizeof(type extents), __LINE__)

inline void __syncthreads(int line = __builtin_LINE()) {
  emulation::Machine::get().barrier(false, line);
}
inline int __syncthreads_or(int predicate, int line = __builtin_LINE()) {
  return emulation::Machine::get().barrier(predicate != 0, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  emulation::Machine::get().exchange(0, mask, line);
}

// Blocks run one after the other, and see all that came before.
inline void __threadfence() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int line = __builtin_LINE()) {
  return emulation::shuffle(mask, value, source, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int line = __builtin_LINE()) {
  return emulation::shuffle(mask, value, emulation::lane() ^ lanes, line);
}
// A lane without a source keeps its own value.
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int line = __builtin_LINE()) {
  const int source = emulation::lane() + static_cast<int>(lanes);
  return emulation::shuffle(mask, value, source < emulation::kWarpSize ? source : emulation::lane(),
                            line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  const uint64_t* values = emulation::Machine::get().exchange(predicate != 0, mask, line);
  unsigned ballot = 0;
  for (int lane = 0; lane < emulation::kWarpSize; ++lane)
    ballot |= (mask >> lane & 1u & static_cast<unsigned>(values[lane])) << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) == mask;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
// The place of the lowest bit that is set, from 1 on; 0 without one.
inline int __ffs(int x) { return __builtin_ffs(x); }

// Byte i of the result is byte (selector >> 4 i) & 7 of y:x.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned chosen = 0;
  for (int i = 0; i < 4; ++i)
    chosen |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return chosen;
}
// sum + the products of four signed bytes each.
inline int __dp4a(int x, int y, int sum) {
  for (int i = 0; i < 4; ++i)
    sum += static_cast<int8_t>(x >> 8 * i) * static_cast<int8_t>(y >> 8 * i);
  return sum;
}

// Integers only, as in the kernels: adding floats in whatever order they come is not deterministic.
template <typename T>
T atomicAdd(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  return std::exchange(*address, static_cast<T>(*address + value));
}
template <typename T>
T atomicMin(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  return std::exchange(*address, std::min(*address, value));
}
template <typename T>
T atomicMax(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  return std::exchange(*address, std::max(*address, value));
}
template <typename T>
T atomicOr(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  return std::exchange(*address, static_cast<T>(*address | value));
}

namespace pairloss::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t,
            const Arguments&... arguments) {
  emulation::Machine::get().run_grid(grid, threads, 0, [&] { kernel(arguments...); });
}

template <typename... Parameters, typename... Arguments>
void launch_with_shared(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                        cudaStream_t, const Arguments&... arguments) {
  emulation::Machine::get().run_grid(grid, threads, shared_bytes, [&] { kernel(arguments...); });
}

constexpr int64_t kWorkspaceGuardBytes = 64;
inline void guard_workspace(void* begin, int64_t bytes) {
  std::memset(begin, 0xa5, bytes);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(begin, bytes);
#endif
  emulation::guards().push_back({static_cast<unsigned char*>(begin), bytes});
}

}  // namespace pairloss::cuda
