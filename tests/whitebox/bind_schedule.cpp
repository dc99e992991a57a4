#include "cpu/schedule.h"

#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "threads.h"

using namespace pairloss::cpu;

namespace {

using TileTuple = std::tuple<int64_t, int64_t>;

// Two threads at the same accumulators, or a tile out of turn.
struct Accumulators {
  std::vector<int64_t> partners;  // the blocks whose tiles added, in order
  std::atomic<bool> busy{false};

  bool add(int64_t partner) {
    const bool alone = !busy.exchange(true);
    partners.push_back(partner);
    busy = false;
    return alone;
  }
};

// As they are handed out to the workers of `turns`, which come one after the other, again and
// again.
std::vector<TileTuple> all_tiles(int64_t batch_blocks, int64_t ref_blocks, int64_t workers,
                                 const std::vector<int64_t>& turns) {
  Schedule schedule(batch_blocks, ref_blocks, workers);
  std::vector<TileTuple> tiles;
  for (Tile tile; schedule.next(turns[tiles.size() % turns.size()], tile);) {
    tiles.emplace_back(tile.row_block, tile.column_block);
  }
  return tiles;
}

// Works on all tiles, each for its own pseudo-random time of up to `microseconds`; then waits for
// every block. Returns, for every row block and every column block, the tiles in the order in which
// they added to it.
std::pair<std::vector<std::vector<int64_t>>, std::vector<std::vector<int64_t>>> run_schedule(
    int64_t batch_blocks, int64_t ref_blocks, int64_t count, const std::string& how,
    int64_t microseconds) {
  const int64_t blocks = batch_blocks + ref_blocks;
  std::vector<Accumulators> rows(blocks), columns(blocks);
  std::atomic<bool> exclusive{true}, known{true}, complete{true};
  const auto pause = [&](const Tile& tile, int64_t salt) {
    const uint64_t random = (tile.row_block * 31 + tile.column_block * 17 + salt) * 2654435761u;
    if (microseconds > 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(random % 65536 * microseconds / 65536));
    }
  };
  const Workers workers = make_workers(count, how);
  Schedule schedule(batch_blocks, ref_blocks, count);
  const auto add = [&](int64_t worker, const Tile& tile) {
    if (worker < 0 || worker >= count) known = false;
    Turn &row_turn = schedule.row_turn(tile), &column_turn = schedule.column_turn(tile);
    pause(tile, 1);
    row_turn.wait(tile.row_turn);
    if (!rows[tile.row_block].add(tile.column_block)) exclusive = false;
    pause(tile, 2);
    row_turn.pass(tile.row_turn);
    column_turn.wait(tile.column_turn);
    if (!columns[tile.column_block].add(tile.row_block)) exclusive = false;
    column_turn.pass(tile.column_turn);
  };
  on_every_worker(workers, [&](int64_t worker) {
    schedule.work(worker, add);
    for (int64_t b = 0; b < blocks; ++b) {
      schedule.wait(b);
      const size_t partners = ref_blocks == 0 || b >= batch_blocks ? batch_blocks : ref_blocks;
      if (rows[b].partners.size() != partners || columns[b].partners.size() != partners) {
        complete = false;
      }
    }
  });
  if (!exclusive) throw std::runtime_error("two tiles added to one block at the same time");
  if (!complete) throw std::runtime_error("a block was waited for, and not all tiles had added");
  if (!known) throw std::runtime_error("a worker has a number out of range");
  std::pair<std::vector<std::vector<int64_t>>, std::vector<std::vector<int64_t>>> partners;
  for (const Accumulators& of_block : rows) partners.first.push_back(of_block.partners);
  for (const Accumulators& of_block : columns) partners.second.push_back(of_block.partners);
  return partners;
}

// How often each task ran.
std::vector<int64_t> run_tasks(int64_t tasks, int64_t count, const std::string& how) {
  std::vector<std::atomic<int64_t>> runs(tasks);
  for_each_task(make_workers(count, how), tasks, [&](int64_t, int64_t task) { ++runs.at(task); });
  return {runs.begin(), runs.end()};
}

// The tasks in the order in which workers that run one after the other take them.
std::vector<int64_t> order_of_tasks(int64_t tasks, int64_t count, const std::string& how) {
  std::vector<int64_t> order;
  for_each_task(make_workers(count, how), tasks,
                [&](int64_t, int64_t task) { order.push_back(task); });
  return order;
}

// Two stages of as many tasks in one launch, the second of which waits for the first. Returns, for
// every task of the second, how many of the first were done when it began.
std::vector<int64_t> run_stages(int64_t tasks, int64_t count, const std::string& how) {
  const Workers workers = make_workers(count, how);
  Stage first(workers, tasks), second(workers, tasks);
  std::atomic<int64_t> done{0};
  std::vector<int64_t> seen(tasks, -1);
  on_every_worker(workers, [&](int64_t worker) {
    first.work(worker, [&](int64_t, int64_t task) {
      if (how == "threads") std::this_thread::sleep_for(std::chrono::microseconds(task % 7 * 100));
      ++done;
    });
    first.wait();
    second.work(worker, [&](int64_t, int64_t task) { seen[task] = done; });
  });
  return seen;
}

}  // namespace

void bind_schedule(pybind11::module_& m) {
  m.def("all_tiles", &all_tiles);
  m.def("order_of_tasks", &order_of_tasks);
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  m.def("run_schedule", &run_schedule, without_gil);
  m.def("run_stages", &run_stages, without_gil);
  m.def("run_tasks", &run_tasks, without_gil);
}
