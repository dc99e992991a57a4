"""bits.h against numpy."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tests.whitebox.data import pack_bits, unpack_bits


@pytest.mark.parametrize("rows", [32, 64, 96, 256])
@pytest.mark.parametrize("columns", [32, 64, 96, 160, 224, 256])
def test_transpose(whitebox: ModuleType, isa: int, rows: int, columns: int) -> None:
    bits = np.random.default_rng(rows + columns).random((rows, columns)) < 0.5
    transposed = whitebox.transpose_bits(isa, pack_bits(bits))
    np.testing.assert_array_equal(unpack_bits(transposed, rows), bits.T)


def test_transpose_of_single_bits(whitebox: ModuleType, isa: int) -> None:
    for at in range(0, 64 * 96, 37):
        bits = np.zeros((64, 96), dtype=bool)
        bits.flat[at] = True
        transposed = whitebox.transpose_bits(isa, pack_bits(bits))
        np.testing.assert_array_equal(unpack_bits(transposed, 64), bits.T)


def test_clear_bits_of_every_range(whitebox: ModuleType, isa: int) -> None:
    ones = np.full(3, 0xFFFFFFFF, dtype=np.uint32)
    for begin in range(97):
        for end in range(begin, 97):
            expected = np.ones((1, 96), dtype=bool)
            expected[0, begin:end] = False
            cleared = whitebox.clear_bits(isa, ones, begin, end)
            np.testing.assert_array_equal(unpack_bits(cleared[None], 96), expected)


def test_clear_bits_leaves_the_others(whitebox: ModuleType, isa: int) -> None:
    row = np.random.default_rng(0).integers(0, 2**32, 4, dtype=np.uint32)
    expected = unpack_bits(row[None], 128)
    expected[0, 31:66] = False
    cleared = whitebox.clear_bits(isa, row, 31, 66)
    np.testing.assert_array_equal(unpack_bits(cleared[None], 128), expected)
