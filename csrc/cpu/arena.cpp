#include "cpu/arena.h"

#include <new>

namespace pairloss::cpu {

constexpr std::align_val_t kAlignment{64};

Buffer::Buffer(size_t bytes) : data_(static_cast<char*>(::operator new(bytes, kAlignment))) {}

Buffer::~Buffer() { ::operator delete(data_, kAlignment); }

}  // namespace pairloss::cpu
