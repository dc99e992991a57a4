"""Index maps of the tiled CUDA kernels: which tiles there are, whose marks are where, and where an
operand of the tensor cores lies."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

from tests.cuda_emulation.emulation import build


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    library = build("tiles")
    library.list_tiles.restype = library.octet_of.restype = ctypes.c_int64
    library.list_tiles.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    library.octet_of.argtypes = [ctypes.c_int64] * 2
    library.mirror_of.restype = ctypes.c_uint64
    library.mirror_of.argtypes = [ctypes.c_uint64]
    library.ordered.restype, library.unordered.restype = ctypes.c_int64, ctypes.c_float
    library.ordered.argtypes, library.unordered.argtypes = [ctypes.c_float], [ctypes.c_int64]
    return library


def tiles(library: ctypes.CDLL, rows: int, columns: int, once: bool) -> list[tuple[int, int]]:
    count = library.list_tiles(rows, columns, once, None)
    pairs = np.full((count, 2), -1)
    library.list_tiles(rows, columns, once, pairs.ctypes.data)
    return [tuple(pair) for pair in pairs.tolist()]


@pytest.mark.parametrize("count", range(1, 10))
def test_the_tiles_of_a_batch_are_there_once(library: ctypes.CDLL, count: int) -> None:
    found = tiles(library, count, count, True)
    assert sorted(found) == list(itertools.combinations_with_replacement(range(count), 2))


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("of_chunk", range(1, 6))
def test_the_chunks_of_a_batch_have_each_tile_once(
    library: ctypes.CDLL, count: int, of_chunk: int
) -> None:
    """A chunk's columns are its rows and those behind them."""
    found = []
    for first in range(0, count, of_chunk):
        rows = min(of_chunk, count - first)
        of_rows = tiles(library, rows, count - first, True)
        assert all(row < rows for row, _ in of_rows)
        found += [(first + row, first + column) for row, column in of_rows]
    assert sorted(found) == list(itertools.combinations_with_replacement(range(count), 2))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (3, 2), (4, 4)])
def test_the_tiles_of_a_chunk_are_all_there(library: ctypes.CDLL, rows: int, columns: int) -> None:
    assert tiles(library, rows, columns, False) == [*np.ndindex(rows, columns)]


def test_mirror_exchanges_rows_and_directions(library: ctypes.CDLL) -> None:
    marks = np.random.default_rng(0).integers(0, 4, (50, 4, 4, 2))  # [row, column, direction]
    shifts = np.arange(32).reshape(4, 4, 2) * 2
    for of_word in marks:
        word = int((of_word.astype(np.uint64) << shifts.astype(np.uint64)).sum())
        mirrored = library.mirror_of(word)
        expected = of_word.transpose(1, 0, 2)[:, :, ::-1]
        assert [mirrored >> int(shift) & 3 for shift in shifts.flat] == expected.flatten().tolist()
        assert library.mirror_of(mirrored) == word


def test_a_plane_has_a_place_for_every_octet(library: ctypes.CDLL) -> None:
    places = {library.octet_of(row, half) for row in range(64) for half in range(2)}
    assert places == set(range(128))


def test_the_threads_share_a_tile(library: ctypes.CDLL) -> None:
    quads = np.zeros((128, 3), np.int64)
    library.tensor_quads(ctypes.c_void_p(quads.ctypes.data))
    words = [(row, column) for row, *columns in quads.tolist() for column in columns]
    assert sorted(words) == [*np.ndindex(16, 16)]


def test_floats_in_their_order(library: ctypes.CDLL) -> None:
    floats = [-np.inf, -3e38, -2.0, -1e-40, -0.0, 0.0, 1e-40, 0.5, 0.75, 1e30, np.inf]
    bits = [library.ordered(x) for x in floats]
    assert bits == sorted(bits)
    for x, of_x in zip(floats, bits, strict=True):
        assert library.unordered(of_x) == np.float32(x)
