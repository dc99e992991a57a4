#include "cpu/arena.h"

#include <atomic>
#include <cstring>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/ideas.h"

namespace pairloss::cpu {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

std::align_val_t alignment(size_t bytes) {
  return std::align_val_t{bytes >= kHugePage ? kHugePage : 64};
}

// The last buffer that was given back, for the next call; its size stands in its first bytes. Fresh
// memory is mapped, and cleared, page by page at its first touch, which at N = 1024, K = 4096 takes
// as long as the loss itself with pages of 4 KiB, and still a tenth of it with huge ones.
std::atomic<char*> spare{nullptr};

constexpr size_t kLeastSpare = size_t{1} << 16, kLargestSpare = size_t{1} << 27;

bool can_be_spare(size_t bytes) {
  return uses<Idea::spare_buffer> && bytes >= kLeastSpare && bytes <= kLargestSpare;
}

char* allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  char* const data = static_cast<char*>(::operator new(bytes, alignment(bytes)));
#if defined(__linux__)
  if (bytes >= kHugePage) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return data;
}

void release(size_t bytes, char* data) { ::operator delete(data, alignment(bytes)); }

size_t size_of_spare(const char* data) {
  size_t bytes;
  std::memcpy(&bytes, data, sizeof bytes);
  return bytes;
}

}  // namespace

Buffer::Buffer(size_t bytes, bool kept) : bytes_(bytes), kept_(kept), data_(nullptr) {
  char* const found = kept && can_be_spare(bytes) ? spare.exchange(nullptr) : nullptr;
  if (found != nullptr) {
    const size_t size = size_of_spare(found);
    if (size >= bytes && size <= 4 * bytes) {
      bytes_ = size;
      data_ = found;
      return;
    }
    release(size, found);
  }
  data_ = allocate(bytes);
}

Buffer::~Buffer() {
  char* unwanted = data_;
  if (kept_ && can_be_spare(bytes_)) {
    std::memcpy(data_, &bytes_, sizeof bytes_);
    unwanted = spare.exchange(data_);
    if (unwanted == nullptr) return;
    bytes_ = size_of_spare(unwanted);
  }
  release(bytes_, unwanted);
}

}  // namespace pairloss::cpu
