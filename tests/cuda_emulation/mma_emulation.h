// The instructions of csrc/cuda/mma.cuh in software, with the lane layout of the PTX ISA.
//
// Errors beside those of cuda_emulation.h: reading or writing an octet that a copy is on its way
// to, leaving a kernel with copies that nobody waited for, a source that is not aligned. And,
// though it would only be slow, ldmatrix with a bank conflict.
#pragma once

#include <cmath>

#include "cuda/split.cuh"
#include "cuda_emulation.h"

namespace emulation {

// What the lanes of a warp bring to an instruction. They all stand still in it until the first one
// that goes on has done the work of all, each with the others' operands and into the others'
// registers.
template <typename Operands, typename Work>
void as_one_warp(Operands& mine, int line, Work work) {
  const uint64_t* values =
      Machine::get().exchange(reinterpret_cast<uintptr_t>(&mine), 0xffffffffu, line);
  if (mine.done) return;
  Operands* lanes[kWarpSize];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    lanes[lane] = reinterpret_cast<Operands*>(static_cast<uintptr_t>(values[lane]));
    lanes[lane]->done = true;
  }
  work(lanes, line);
}

inline float toward_zero(double exact) {
  const auto rounded = static_cast<float>(exact);
  return std::abs(static_cast<double>(rounded)) > std::abs(exact) ? std::nextafter(rounded, 0.0f)
                                                                  : rounded;
}

inline float half_of(uint32_t pair, int half) {
  return from_bits<float>(uint64_t{pair >> (16 * half)} << 16 & 0xffffffffu);
}

struct Multiplication {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
  bool done = false;
};

// d += a b. The sum of the exact products and d, cut off at 24 bits: the order in which hardware
// adds is not documented, but that it cuts off is known (M. Fasi et al., "Numerical behavior of
// NVIDIA tensor cores", 2021).
template <int kDepth>
void add_product(Multiplication* const (&lanes)[kWarpSize], const float (&a)[16][kDepth],
                 const float (&b)[kDepth][8]) {
  for (int row = 0; row < 16; ++row) {
    const auto at = [&](int column) -> float& {
      return lanes[row % 8 * 4 + column / 2]->d[row / 8 * 2 + column % 2];
    };
    double sums[8];
    for (int column = 0; column < 8; ++column) sums[column] = at(column);
    for (int k = 0; k < kDepth; ++k) {
      const double factor = a[row][k];
      for (int column = 0; column < 8; ++column) sums[column] += factor * b[k][column];
    }
    for (int column = 0; column < 8; ++column) at(column) = toward_zero(sums[column]);
  }
}

inline void multiply_bfloat16(Multiplication* const (&lanes)[kWarpSize], int) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i)
        a[g + i % 2 * 8][2 * t + half + i / 2 * 8] = half_of(lanes[lane]->a[i], half);
      for (int i = 0; i < 2; ++i) b[2 * t + half + i * 8][g] = half_of(lanes[lane]->b[i], half);
    }
  }
  add_product(lanes, a, b);
}

// Ten bits of the significand are looked at.
inline float tfloat32_of(uint32_t bits) { return from_bits<float>(bits & ~uint32_t{0x1fff}); }

inline void multiply_tfloat32(Multiplication* const (&lanes)[kWarpSize], int) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = tfloat32_of(lanes[lane]->a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = tfloat32_of(lanes[lane]->b[i]);
  }
  add_product(lanes, a, b);
}

template <typename T>
struct MatrixLoad {
  uint32_t* fragment;
  SharedPointer<T> row;
  bool transposed, done = false;
};

template <typename T>
void load(MatrixLoad<T>* const (&lanes)[kWarpSize], int line) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t elements[8][8];
    unsigned banks = 0;  // of 16 bytes; the extents of arrays of octets are multiples of eight
    for (int row = 0; row < 8; ++row) {
      banks |= 1u << lanes[matrix * 8 + row]->row.index() % 8;
      const T octet = lanes[matrix * 8 + row]->row.read_for_warp();
      std::memcpy(elements[row], &octet, sizeof(octet));
    }
    if (banks != 0xff) Machine::get().fail("ldmatrix with a bank conflict", line);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int row = lane / 4, column = 2 * (lane % 4);
      const bool transposed = lanes[lane]->transposed;
      const uint32_t low = transposed ? elements[column][row] : elements[row][column];
      const uint32_t high = transposed ? elements[column + 1][row] : elements[row][column + 1];
      lanes[lane]->fragment[matrix] = low | high << 16;
    }
  }
}

}  // namespace emulation

namespace pairloss::cuda {
namespace {

using SharedOctet = emulation::SharedPointer<Octet>;

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         int line = __builtin_LINE()) {
  emulation::Multiplication mine{d, a, {b0, b1}};
  emulation::as_one_warp(mine, line, emulation::multiply_bfloat16);
}

inline void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                        int line = __builtin_LINE()) {
  emulation::Multiplication mine{d, a, {b0, b1}};
  emulation::as_one_warp(mine, line, emulation::multiply_tfloat32);
}

inline uint32_t pack_bfloat16(float low, float high) {
  return to_bfloat16(low) | to_bfloat16(high) << 16;
}

inline void load_matrices(uint32_t (&fragment)[4], SharedOctet row, int line = __builtin_LINE()) {
  emulation::MatrixLoad<Octet> mine{fragment, row, false};
  emulation::as_one_warp(mine, line, emulation::load<Octet>);
}

inline void load_matrices_transposed(uint32_t (&fragment)[4], SharedOctet row,
                                     int line = __builtin_LINE()) {
  emulation::MatrixLoad<Octet> mine{fragment, row, true};
  emulation::as_one_warp(mine, line, emulation::load<Octet>);
}

template <bool kKeep = false>
void copy_async(SharedOctet destination, const Octet* source, int line = __builtin_LINE()) {
  emulation::Machine& machine = emulation::Machine::get();
  if (reinterpret_cast<uintptr_t>(source) % sizeof(Octet) != 0)
    machine.fail("copy_async: the source is not aligned to 16 bytes", line);
  destination.announce();
  machine.copies().push([destination, source] { destination.arrive(*source); });
}

inline void commit_copies() { emulation::Machine::get().copies().commit(); }

template <int kPending>
void wait_for_copies() {
  emulation::Machine::get().copies().wait(kPending);
}

}  // namespace
}  // namespace pairloss::cuda
