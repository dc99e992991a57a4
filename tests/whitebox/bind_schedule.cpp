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

using TileTuple = std::tuple<int64_t, int64_t, int64_t>;

// Two threads at the same accumulators, or a step out of turn.
struct Accumulators {
  std::vector<int64_t> steps;
  std::atomic<bool> busy{false};

  bool add(int64_t step) {
    const bool alone = !busy.exchange(true);
    steps.push_back(step);
    busy = false;
    return alone;
  }
};

// Works on all tiles, each for its own pseudo-random time of up to `microseconds`. Returns, for
// every row block and every column block, the steps in the order in which they added to it.
std::pair<std::vector<std::vector<int64_t>>, std::vector<std::vector<int64_t>>> run_schedule(
    int64_t blocks, int64_t count, const std::string& how, int64_t microseconds) {
  std::vector<Accumulators> rows(blocks), columns(blocks);
  std::atomic<bool> exclusive{true}, known{true};
  const auto pause = [&](const Tile& tile, int64_t salt) {
    const uint64_t random = (tile.row_block * 31 + tile.column_block * 17 + salt) * 2654435761u;
    if (microseconds > 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(random % 65536 * microseconds / 65536));
    }
  };
  const Workers workers = make_workers(count, how);
  for_each_tile(workers, blocks,
                [&](int64_t worker, const Tile& tile, Turn& row_turn, Turn& column_turn) {
                  if (worker < 0 || worker >= count) known = false;
                  pause(tile, 1);
                  row_turn.wait(tile.step);
                  if (!rows[tile.row_block].add(tile.step)) exclusive = false;
                  pause(tile, 2);
                  row_turn.pass(tile.step);
                  column_turn.wait(tile.step);
                  if (!columns[tile.column_block].add(tile.step)) exclusive = false;
                  column_turn.pass(tile.step);
                });
  if (!exclusive) throw std::runtime_error("two tiles added to one block at the same time");
  if (!known) throw std::runtime_error("a worker has a number out of range");
  std::pair<std::vector<std::vector<int64_t>>, std::vector<std::vector<int64_t>>> steps;
  for (const Accumulators& of_block : rows) steps.first.push_back(of_block.steps);
  for (const Accumulators& of_block : columns) steps.second.push_back(of_block.steps);
  return steps;
}

// How often each task ran.
std::vector<int64_t> run_tasks(int64_t tasks, int64_t count, const std::string& how) {
  std::vector<std::atomic<int64_t>> runs(tasks);
  for_each_task(make_workers(count, how), tasks, [&](int64_t task) { ++runs.at(task); });
  return {runs.begin(), runs.end()};
}

}  // namespace

void bind_schedule(pybind11::module_& m) {
  m.def("latin_square_tile", [](int64_t index, int64_t blocks) {
    const Tile tile = latin_square_tile(index, blocks);
    return TileTuple(tile.step, tile.row_block, tile.column_block);
  });
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  m.def("run_schedule", &run_schedule, without_gil);
  m.def("run_tasks", &run_tasks, without_gil);
}
