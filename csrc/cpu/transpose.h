// The transpose of 16 x 16 units of 32 bits, in four rounds that swap blocks of 1, 2, 4 and 8.
#pragma once

#if defined(PAIRLOSS_AMX) || defined(PAIRLOSS_VNNI)
namespace pairloss::cpu::PAIRLOSS_ISA {

template <int kStep>
PAIRLOSS_INLINE void swap_blocks(__m512i (&rows)[16]) {
  // Lane i of the other row is number 16 + i.
  const __m512i lane = lane_numbers();
  const __m512i step = _mm512_set1_epi32(kStep);
  const __mmask16 upper = _mm512_test_epi32_mask(lane, step);
  const __m512i from_other = _mm512_add_epi32(lane, _mm512_set1_epi32(16));
  const __m512i low = _mm512_mask_sub_epi32(lane, upper, from_other, step);
  const __m512i high = _mm512_mask_mov_epi32(_mm512_add_epi32(lane, step), upper, from_other);
  for (int i = 0; i < 16; i = (i + kStep + 1) & ~kStep) {
    const __m512i row = rows[i];
    rows[i] = _mm512_permutex2var_epi32(row, low, rows[i + kStep]);
    rows[i + kStep] = _mm512_permutex2var_epi32(row, high, rows[i + kStep]);
  }
}

PAIRLOSS_INLINE void transpose_16x16(__m512i (&rows)[16]) {
  swap_blocks<1>(rows);
  swap_blocks<2>(rows);
  swap_blocks<4>(rows);
  swap_blocks<8>(rows);
}

}  // namespace pairloss::cpu::PAIRLOSS_ISA
#endif  // PAIRLOSS_AMX || PAIRLOSS_VNNI
