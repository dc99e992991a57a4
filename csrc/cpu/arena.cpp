#include "cpu/arena.h"

#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pairloss::cpu {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

std::align_val_t alignment(size_t bytes) {
  return std::align_val_t{bytes >= kHugePage ? kHugePage : 64};
}

}  // namespace

Buffer::Buffer(size_t bytes)
    : bytes_(bytes), data_(static_cast<char*>(::operator new(bytes, alignment(bytes)))) {
#if defined(__linux__)
  // Fresh memory is mapped page by page at its first touch: with pages of 4 KiB that takes as long
  // as the loss itself where K is large (60 of 150 ms at N = 1024, K = 4096).
  if (bytes >= kHugePage) madvise(data_, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() { ::operator delete(data_, alignment(bytes_)); }

}  // namespace pairloss::cpu
