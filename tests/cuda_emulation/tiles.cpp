// The index maps of csrc/cuda/tiles.cuh and planes.cuh, the sizes of plan.cuh, and the searches of
// search.cuh behind a C interface for ctypes (see test_tiles.py).
#include "cuda/tiles.cuh"
#include "cuda/plan.cuh"
#include "cuda/planes.cuh"
#include "cuda/search.cuh"

using namespace pairloss::cuda;

namespace {

// A warp per value.
__global__ void search_kernel(const int64_t* sorted, int64_t size, const int64_t* values,
                              int64_t* narrow, int64_t* wide) {
  const int64_t value = values[blockIdx.x], place = lower_bound_of_warp(sorted, size, value);
  if (threadIdx.x != 0) return;
  wide[blockIdx.x] = place;
  narrow[blockIdx.x] = lower_bound(sorted, size, value);
}

}  // namespace

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

int64_t chunk_rows(int64_t rows, int64_t classes, int64_t levels) {
  return default_chunk_rows(rows, rows, classes, static_cast<int>(levels), true);
}

// sizes: rows and columns of the tiles that pairs are counted in.
int64_t counted_tiles(int64_t rows, int64_t columns, int64_t within, int64_t* sizes) {
  const PairTiles all = count_tiles(rows, columns, within != 0);
  sizes[0] = ceil_div(rows, all.row_tiles);
  sizes[1] = ceil_div(within != 0 ? rows : columns, all.column_tiles);
  return all.count();
}

void search(const int64_t* sorted, int64_t size, const int64_t* values, int64_t count,
            int64_t* narrow, int64_t* wide) {
  launch(search_kernel, dim3(static_cast<unsigned>(count)), kWarp, nullptr, sorted, size, values,
         narrow, wide);
}

int64_t ordered(float x) { return to_ordered(x); }
float unordered(int64_t bits) { return from_ordered(static_cast<int>(bits)); }

}  // extern "C"
