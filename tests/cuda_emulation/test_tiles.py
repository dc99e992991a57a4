"""Index maps of the tiled CUDA kernels: which tiles there are, whose marks are where, and where an
operand of the tensor cores lies; how the work is cut, and searches."""

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
    library.chunk_rows.restype = library.counted_tiles.restype = ctypes.c_int64
    library.chunk_rows.argtypes = [ctypes.c_int64] * 3
    library.counted_tiles.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    library.search.restype = None
    library.search.argtypes = [ctypes.c_void_p, ctypes.c_int64] * 2 + [ctypes.c_void_p] * 2
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


@pytest.mark.parametrize("rows", [16384, 16385, 17000, 33000, 100_000, 2**20])
@pytest.mark.parametrize("levels", [1, 3])
def test_chunks_are_few_and_of_one_size(library: ctypes.CDLL, rows: int, levels: int) -> None:
    of_chunk = library.chunk_rows(rows, 34, levels)
    count = -(-rows // of_chunk)
    if rows * rows * levels <= 2**28:
        assert count == 1
        return
    assert of_chunk % 64 == 0
    most = max(2**28 // rows // levels // 64 * 64, 64)
    assert of_chunk <= most and count == -(-rows // most)
    assert rows - (count - 1) * of_chunk > of_chunk - 64 * count  # the last one, which has the rest


@pytest.mark.parametrize("rows", [1, 15, 128, 1000, 16384, 2**20])
@pytest.mark.parametrize("columns", [None, 1, 300, 65536])
def test_pairs_are_counted_in_a_few_thousand_tiles(
    library: ctypes.CDLL, rows: int, columns: int | None
) -> None:
    sizes = np.zeros(2, np.int64)
    count = library.counted_tiles(rows, columns or 0, columns is None, sizes.ctypes.data)
    assert 1 <= count <= 4096
    # More where that makes each of them small.
    assert count >= min(2000, rows * (columns or rows) // 2**13)
    assert sizes[0] * sizes[1] < 2**31  # what a block counts fits into an int


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 34, 1000, 1088, 1089, 1090, 5000])
def test_searches(library: ctypes.CDLL, size: int) -> None:
    random = np.random.default_rng(size)
    values = np.arange(-2, 152)
    for greatest in (1, 20, 150):
        numbers = np.sort(random.integers(0, greatest, size))
        found = np.full((2, len(values)), -1)
        library.search(
            numbers.ctypes.data,
            size,
            values.ctypes.data,
            len(values),
            *(x.ctypes.data for x in found),
        )
        for places in found:
            assert places.tolist() == np.searchsorted(numbers, values).tolist()
