#include "cpu/schedule.h"

#include <algorithm>

namespace pairloss::cpu {
namespace {

struct Blocks {
  int64_t row, column;
};

// Number `index` of rows x columns, in Latin-square order.
Blocks latin_square(int64_t index, int64_t rows, int64_t columns) {
  const int64_t side = std::min(rows, columns);
  const int64_t step = index / side, at = index % side;
  return rows <= columns ? Blocks{at, (at + step) % columns} : Blocks{(at + step) % rows, at};
}

}  // namespace

Schedule::Schedule(int64_t batch_blocks, int64_t ref_blocks)
    : batch_blocks_(batch_blocks),
      ref_blocks_(ref_blocks),
      blocks_(batch_blocks + ref_blocks),
      tiles_(batch_blocks * (ref_blocks > 0 ? 2 * ref_blocks : batch_blocks)),
      turns_(new Turn[2 * blocks_]),
      handed_out_(2 * blocks_, 0) {}

bool Schedule::next(Tile& tile) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (next_ == tiles_) return false;
  const int64_t index = next_++, crossing = batch_blocks_ * ref_blocks_;
  Blocks blocks;
  if (ref_blocks_ == 0) {
    blocks = latin_square(index, batch_blocks_, batch_blocks_);
  } else if (index < crossing) {
    blocks = latin_square(index, batch_blocks_, ref_blocks_);
    blocks.column += batch_blocks_;
  } else {
    blocks = latin_square(index - crossing, ref_blocks_, batch_blocks_);
    blocks.row += batch_blocks_;
  }
  tile = {blocks.row, blocks.column, handed_out_[blocks.row]++,
          handed_out_[blocks_ + blocks.column]++};
  return true;
}

}  // namespace pairloss::cpu
