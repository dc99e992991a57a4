// The order in which tiles of the pair matrix are worked on.
//
// A tile (R, C) adds to accumulators of its rows R and to others of its columns C. Sums of floats
// depend on their order, so every block must receive its addends in one fixed order, whichever
// thread computes them. The tiles are taken in the order of a Latin square: a step works on one
// tile of every row block R, no two of which share a column block, and threads seldom wait for each
// other. Within a step a worker takes the rows R that are its own first, whose accumulators it then
// has in its cache; the order of a block's tiles is the same.
//
// Of all Latin squares this is one by which the accumulators of a column block move between two,
// four or eight workers as seldom as can be, and end with the worker who finishes the same rows.
// Its last step is the diagonal, whose tiles have the similar pairs, and so the least to do: at the
// end nobody waits long for the others.
//
// A tile is told, when it is handed out, how many tiles added to each of its blocks before it; a
// counter per block holds back one that comes too early. The tile that is waited for has always
// been handed out before: there is no deadlock, also when one thread does everything.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/workers.h"

namespace pairloss::cpu {

class Turn {
 public:
  void wait(int64_t turn) const {
    wait_until([&] { return done_.load(std::memory_order_acquire) == turn; });
  }
  void pass(int64_t turn) { done_.store(turn + 1, std::memory_order_release); }

 private:
  std::atomic<int64_t> done_{0};
};

struct Tile {
  int64_t row_block, column_block;
  int64_t row_turn, column_turn;  // how many tiles added to the blocks before
};

// Blocks 0 .. batch_blocks - 1 of the batch; then those of the reference set, if there are more.
// All pairs of blocks of the batch; or with a reference set, all of a block of the batch with one
// of the reference set, in both directions.
class Schedule {
 public:
  Schedule(int64_t batch_blocks, int64_t ref_blocks, int64_t workers);

  // A worker's next tile, or false after the last. By any thread.
  bool next(int64_t worker, Tile& tile);

  // body(worker, tile) for every tile that nobody else takes. The body calls wait and pass of both
  // turns, in the order of adding.
  template <class Body>
  void work(int64_t worker, Body&& body) {
    for (Tile tile; next(worker, tile);) body(worker, tile);
  }

  // Until all tiles of a block, as rows and as columns, have been added to it. After work.
  void wait(int64_t block) const {
    for (const int64_t b : {block, blocks_ + block}) turns_[b].wait(handed_out_[b]);
  }

  Turn& row_turn(const Tile& tile) { return turns_[tile.row_block]; }
  Turn& column_turn(const Tile& tile) { return turns_[blocks_ + tile.column_block]; }

 private:
  int64_t take_of_step(int64_t worker);

  int64_t batch_blocks_, ref_blocks_, blocks_, side_, tiles_;
  std::unique_ptr<Turn[]> turns_;    // of row blocks, then of column blocks
  std::vector<int64_t> handed_out_;  // likewise: tiles so far
  std::vector<int64_t> next_;        // of each worker's own tiles of the step
  int64_t taken_ = 0;                // of all tiles
  std::mutex mutex_;
};

}  // namespace pairloss::cpu
