// The ideas that make the kernels fast, each to be switched off by itself with
// -DPAIRLOSS_WITHOUT=name: what each of them is worth is measured by benchmarks/ablation.py. None
// of them changes the result by more than rounding.
#pragma once

#ifndef PAIRLOSS_WITHOUT
#define PAIRLOSS_WITHOUT nothing
#endif

namespace pairloss::cpu {

enum class Idea {
  nothing,
  class_order,     // rows of a class stand together                        labels.cpp
  likeness_order,  // within a class, rows that are alike                   batch.h
  certificates,    // blocks of pairs on one side of the margin             certificates.h
  whole_tiles,     // tiles of those in closed form, or not at all          selected.h
  coarse_first,    // which pairs are active, in bfloat16 or integers first amx.h, vnni.h
  bit_lists,       // blocks of few bits are summed from lists              selected_sums.h
  totals,          // of nearly full words, what is missing is subtracted   selected_sums.h
  subset_sums,     // without a matrix unit: the method of Four Russians    subset_sums.h
  matrix_unit,     // with one: bits times the digits of each float         amx_sums.h
  spare_buffer,    // scratch is kept from one call to the next             arena.cpp
};

// A variable, not a function: it is a constant wherever it stands.
template <Idea idea>
inline constexpr bool uses = idea != Idea::PAIRLOSS_WITHOUT;

}  // namespace pairloss::cpu
