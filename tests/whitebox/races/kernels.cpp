// All kernels on four threads, for ThreadSanitizer to watch (see test_sanitizers.py).
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "cpu/capability.h"
#include "cpu/similarity.h"

using namespace pairloss::cpu;

namespace {

void launch(int64_t workers, void (*body)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t w = 0; w < workers; ++w) threads.emplace_back(body, context, w);
  for (std::thread& thread : threads) thread.join();
}

// clusters: rows of a label are alike, so that most tiles are certain as a whole.
void run(int64_t rows, int64_t columns, bool masked, bool clusters, const Kernels& kernels) {
  std::mt19937 generator(rows);
  std::normal_distribution<float> normal;
  std::vector<float> logits(rows * columns), grad(rows * columns), weights(rows, 0.5f);
  std::vector<int64_t> labels(rows);
  std::vector<double> row_losses(rows);
  for (float& z : logits) z = normal(generator);
  for (int64_t i = 0; i < rows; ++i) {
    labels[i] = generator() % 5;
    for (int64_t k = 0; clusters && k < columns; ++k) {
      logits[i * columns + k] *= 0.02f;
      if (k == 0 && labels[i] % 2 == 0) logits[i * columns] += 4.0f;
    }
    if (masked && labels[i] == 2) logits[i * columns + 3] = -INFINITY;
  }
  // The first half as the batch, the second as a reference set; and all with a matrix.
  const int64_t half = rows / 2;
  const std::vector<Level> levels{
      make_level(labels.data(), rows, nullptr, 0, false, 1, -100),
      make_level(labels.data(), half, labels.data() + half, rows - half, true, 1, -100)};
  std::vector<int8_t> similarity(clusters ? 0 : rows * rows);
  for (int8_t& s : similarity) s = static_cast<int8_t>(generator() % 3) - 1;
  const Workers workers{4, launch};
  const Level of_matrix =
      clusters ? Level{} : make_level_of_matrix(similarity.data(), rows, workers);

  Problem problem{};
  problem.element = Element::float32;
  problem.k = columns;
  problem.margin = 1.5;
  problem.level_count = 1;
  PairSums sums;
  for (int form = 0; form < (clusters ? 2 : 3); ++form) {  // a matrix has no certain tiles
    problem.cross = form == 1;
    problem.levels = form == 2 ? &of_matrix : &levels[form];
    problem.similarity = form == 2 ? similarity.data() : nullptr;
    const int64_t n = form == 1 ? half : rows;
    problem.sides[0] = {logits.data(), n, weights.data(), grad.data()};
    problem.sides[1] = {};
    if (form == 1) {
      problem.sides[1] = {logits.data() + half * columns, rows - half, nullptr,
                          grad.data() + half * columns};
    }
    kernels.value(problem, workers, &sums, nullptr);
    kernels.value(problem, workers, &sums, row_losses.data());
    kernels.gradient(problem, workers, weights.data(), &sums);
    kernels.gradient(problem, workers, nullptr, &sums);
  }
  std::printf("%ld x %ld%s%s: %ld active pairs\n", static_cast<long>(rows),
              static_cast<long>(columns), masked ? ", masked" : "", clusters ? ", clusters" : "",
              static_cast<long>(sums.active));
}

}  // namespace

int main() {
  for (int64_t capability = 0; capability < 4; ++capability) {
    const auto c = static_cast<Capability>(capability);
    if (!is_supported(c)) continue;
    for (bool masked : {false, true}) {
      run(40, 130, masked, false, kernels_for(c));
      run(300, 5, masked, false, kernels_for(c));
      run(600, 70, masked, false, kernels_for(c));
    }
    run(4200, 4, false, true, kernels_for(c));
  }
}
