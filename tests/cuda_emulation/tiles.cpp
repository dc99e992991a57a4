// The index maps of csrc/cuda/tiles.cuh and planes.cuh behind a C interface for ctypes (see
// test_tiles.py).
#include "cuda/tiles.cuh"
#include "cuda/planes.cuh"

using namespace pairloss::cuda;

extern "C" {

// tiles: (count, 2), null to ask for the count.
int64_t list_tiles(int64_t row_tiles, int64_t column_tiles, int64_t once, int64_t* tiles) {
  const PairTiles all{static_cast<int>(row_tiles), static_cast<int>(column_tiles), once != 0};
  for (int index = 0; tiles != nullptr && index < all.count(); ++index) {
    const PairTile tile = all.at(index);
    tiles[2 * index] = tile.row;
    tiles[2 * index + 1] = tile.column;
  }
  return all.count();
}

uint64_t mirror_of(uint64_t word) { return mirror(word); }

int64_t octet_of(int64_t row, int64_t half) {
  return plane_octet(static_cast<int>(row), static_cast<int>(half));
}

// quads: (threads, 3) row quad and two column quads.
void tensor_quads(int64_t* quads) {
  for (int thread = 0; thread < TensorLayout::kThreads; ++thread) {
    threadIdx = dim3(static_cast<unsigned>(thread));
    quads[3 * thread] = TensorLayout::row_quad();
    quads[3 * thread + 1] = TensorLayout::column_quad(0);
    quads[3 * thread + 2] = TensorLayout::column_quad(1);
  }
}

int64_t ordered(float x) { return to_ordered(x); }
float unordered(int64_t bits) { return from_ordered(static_cast<int>(bits)); }

}  // extern "C"
