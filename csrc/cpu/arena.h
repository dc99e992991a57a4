// One allocation for all arrays of a call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pairloss::cpu {

// 64-byte aligned, uninitialised memory, freed at the end of the scope, or kept for the next call:
// one buffer is, so of those that live at a time only the largest should be `kept`. Not inline, so
// that no instruction set's copy of it can be linked into another's. Throws std::bad_alloc.
class Buffer {
 public:
  explicit Buffer(size_t bytes, bool kept = true);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data() const { return data_; }

 private:
  size_t bytes_;
  bool kept_;
  char* data_;
};

// Cuts arrays out of a buffer. The same layout function runs twice: without a buffer, to learn the
// size, and with.
class Arena {
 public:
  explicit Arena(char* data = nullptr) : data_(data) {}

  template <class T>
  [[gnu::always_inline]] inline T* take(int64_t count) {
    T* const array = data_ == nullptr ? nullptr : reinterpret_cast<T*>(data_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return array;
  }
  [[gnu::always_inline]] inline size_t used() const { return used_; }

 private:
  char* data_;
  size_t used_ = 0;
};

}  // namespace pairloss::cpu
