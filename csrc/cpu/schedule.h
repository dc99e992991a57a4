// The order in which tiles of the N x N pair matrix are worked on.
//
// A tile (R, C) adds to accumulators of its rows R and to others of its columns C. Sums of floats
// depend on their order, so every block must receive its addends in one fixed order, whichever
// thread computes them. The tiles are taken in Latin-square order: step s works on (R, R + s mod B)
// for all R, so within a step no two tiles share a row block or a column block, and the s-th addend
// of every block is that of step s. One counter per block holds back a tile that comes too early.
// Tiles are handed out in this order, so the tile that is waited for has always been handed out
// before: there is no deadlock, also when one thread does everything.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "cpu/workers.h"

namespace pairloss::cpu {

class Turn {
 public:
  void wait(int64_t step) const {
    while (done_.load(std::memory_order_acquire) != step) std::this_thread::yield();
  }
  void pass(int64_t step) { done_.store(step + 1, std::memory_order_release); }

 private:
  std::atomic<int64_t> done_{0};
};

struct Tile {
  int64_t step, row_block, column_block;
};

// The tile that is handed out as number `index` of `blocks`^2.
inline Tile latin_square_tile(int64_t index, int64_t blocks) {
  const int64_t step = index / blocks, row_block = index % blocks;
  const int64_t column_block = row_block + step;
  return {step, row_block, column_block < blocks ? column_block : column_block - blocks};
}

// body(worker, tile, row_turn, column_turn) for every tile. The body calls wait(tile.step) before
// it adds to the accumulators of its block, and pass(tile.step) after.
template <class Body>
void for_each_tile(const Workers& workers, int64_t blocks, Body&& body) {
  const std::unique_ptr<Turn[]> row_turns(new Turn[blocks]), column_turns(new Turn[blocks]);
  std::atomic<int64_t> next{0};
  on_every_worker(blocks > 1 ? workers : Workers{}, [&](int64_t worker) {
    for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < blocks * blocks;) {
      const Tile tile = latin_square_tile(index, blocks);
      body(worker, tile, row_turns[tile.row_block], column_turns[tile.column_block]);
    }
  });
}

}  // namespace pairloss::cpu
