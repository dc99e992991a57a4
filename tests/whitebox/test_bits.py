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


@pytest.mark.parametrize("n", [1, 31, 32, 100, 300, 512])
@pytest.mark.parametrize("kind", ["sorted", "shuffled", "one class", "with gaps", "one gap"])
def test_keep_dissimilar(whitebox: ModuleType, isa: int, kind: str, n: int) -> None:
    rng = np.random.default_rng(n)
    ids = np.sort(rng.integers(0, 6, n)).astype(np.int32)
    if kind != "sorted":
        rng.shuffle(ids)
    if kind == "one class":
        ids[:] = 3
    if kind == "with gaps":
        ids[rng.random(n) < 0.3] = -1
    if kind == "one gap":
        ids[n // 2] = -1
    bits = rng.random((n, n)) < 0.8
    kept = unpack_bits(whitebox.keep_dissimilar(isa, ids, pack_bits(bits)), n)
    valid = (ids >= 0)[:, None] & (ids >= 0)
    np.testing.assert_array_equal(kept[:n], bits & valid & (ids[:, None] != ids))
    assert not kept[n:].any()


@pytest.mark.parametrize("n", [1, 31, 32, 100, 300])
def test_split_similarity(whitebox: ModuleType, isa: int, n: int) -> None:
    rng = np.random.default_rng(n)
    similarity = rng.integers(-1, 2, (n, n)).astype(np.int8)
    bits = rng.random((n, n)) < 0.8
    negative, positive = whitebox.split_similarity(isa, similarity, pack_bits(bits))
    off_diagonal = ~np.eye(n, dtype=bool)
    found = unpack_bits(negative, n)
    np.testing.assert_array_equal(found[:n], bits & (similarity < 0) & off_diagonal)
    np.testing.assert_array_equal(unpack_bits(positive, n)[:n], (similarity > 0) & off_diagonal)
    assert not found[n:].any()
