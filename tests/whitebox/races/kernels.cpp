// All kernels on four threads, for ThreadSanitizer to watch (see test_sanitizers.py).
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "cpu/capability.h"

using namespace pairloss::cpu;

namespace {

void launch(int64_t workers, void (*body)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t w = 0; w < workers; ++w) threads.emplace_back(body, context, w);
  for (std::thread& thread : threads) thread.join();
}

void run(int64_t rows, int64_t columns, bool masked, const Kernels& kernels) {
  std::mt19937 generator(rows);
  std::normal_distribution<float> normal;
  std::vector<float> logits(rows * columns), grad(rows * columns), weights(rows, 0.5f);
  std::vector<int64_t> labels(rows);
  std::vector<double> row_losses(rows);
  for (float& z : logits) z = normal(generator);
  for (int64_t i = 0; i < rows; ++i) {
    labels[i] = generator() % 5;
    if (masked && labels[i] == 2) logits[i * columns + 3] = -INFINITY;
  }
  const Classes classes = sort_by_class(labels.data(), rows, -100);
  const Problem problem{logits.data(), Element::float32, rows, columns, 1.5, false, &classes};
  const Workers workers{4, launch};
  kernels.value(problem, workers, nullptr);
  kernels.value(problem, workers, row_losses.data());
  kernels.gradient(problem, workers, 1.0, weights.data(), grad.data());
  const PairSums sums = kernels.gradient(problem, workers, 1.0, nullptr, grad.data());
  std::printf("%ld x %ld%s: %ld active pairs\n", static_cast<long>(rows),
              static_cast<long>(columns), masked ? ", masked" : "", static_cast<long>(sums.active));
}

}  // namespace

int main() {
  for (int64_t capability = 0; capability < 4; ++capability) {
    const auto c = static_cast<Capability>(capability);
    if (!is_supported(c)) continue;
    for (bool masked : {false, true}) {
      run(40, 130, masked, kernels_for(c));
      run(300, 5, masked, kernels_for(c));
      run(600, 70, masked, kernels_for(c));
    }
  }
}
