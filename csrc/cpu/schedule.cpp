#include "cpu/schedule.h"

#include <algorithm>

namespace pairloss::cpu {
namespace {

struct Blocks {
  int64_t row, column;
};

// Tile `at` of a step over the blocks of one batch, in the order of a Latin square that halves
// itself as often as it can: the Cayley table of Z_2^n x Z_m, where blocks = 2^n m. Until half of
// the steps are done, each half of the rows has the columns of the other half, then its own; and
// within these likewise.
Blocks halving_latin_square(int64_t step, int64_t at, int64_t blocks) {
  const int64_t parts = blocks & -blocks, m = blocks / parts;
  const int64_t part = at / m ^ (parts - 1 - step / m);
  return {at, part * m + (at + 1 + step) % m};
}

// Tile `at` of a step of rows x columns.
Blocks cyclic_latin_square(int64_t step, int64_t at, int64_t rows, int64_t columns) {
  return rows <= columns ? Blocks{at, (at + step) % columns} : Blocks{(at + step) % rows, at};
}

}  // namespace

Schedule::Schedule(int64_t batch_blocks, int64_t ref_blocks, int64_t workers)
    : batch_blocks_(batch_blocks),
      ref_blocks_(ref_blocks),
      blocks_(batch_blocks + ref_blocks),
      side_(ref_blocks > 0 ? std::min(batch_blocks, ref_blocks) : batch_blocks),
      tiles_(batch_blocks * (ref_blocks > 0 ? 2 * ref_blocks : batch_blocks)),
      turns_(new Turn[2 * blocks_]),
      handed_out_(2 * blocks_, 0),
      next_(workers) {}

// The first tile of the step that is left, from the worker's own on.
int64_t Schedule::take_of_step(int64_t worker) {
  const auto workers = static_cast<int64_t>(next_.size());
  if (taken_ % side_ == 0) {
    for (int64_t w = 0; w < workers; ++w) next_[w] = first_of_worker(w, workers, side_);
  }
  ++taken_;
  while (next_[worker] == first_of_worker(worker + 1, workers, side_)) {
    worker = (worker + 1) % workers;
  }
  return next_[worker]++;
}

bool Schedule::next(int64_t worker, Tile& tile) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (taken_ == tiles_) return false;
  const int64_t step = taken_ / side_, at = take_of_step(worker);
  Blocks blocks;
  if (ref_blocks_ == 0) {
    blocks = halving_latin_square(step, at, batch_blocks_);
  } else if (const int64_t crossing = std::max(batch_blocks_, ref_blocks_); step < crossing) {
    blocks = cyclic_latin_square(step, at, batch_blocks_, ref_blocks_);
    blocks.column += batch_blocks_;
  } else {
    blocks = cyclic_latin_square(step - crossing, at, ref_blocks_, batch_blocks_);
    blocks.row += batch_blocks_;
  }
  tile = {blocks.row, blocks.column, handed_out_[blocks.row]++,
          handed_out_[blocks_ + blocks.column]++};
  return true;
}

}  // namespace pairloss::cpu
