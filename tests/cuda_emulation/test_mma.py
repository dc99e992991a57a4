"""The instructions around the tensor cores on the emulation, by the tables of the PTX ISA; and the
splitting of floats into bf16, which the kernels feed them with."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.cuda_emulation.emulation import build

LANES = range(32)
Words = NDArray[np.uint32]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    library = build("mma")
    library.copy.restype = ctypes.c_char_p
    return library


def pointer(array: NDArray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def aligned(rows: int) -> NDArray[np.uint16]:
    """(rows, 8), each row aligned to its 16 bytes."""
    memory = np.zeros(rows * 16 + 16, np.uint8)
    begin = -memory.ctypes.data % 16
    return memory[begin : begin + rows * 16].view(np.uint16).reshape(rows, 8)


def bf16(values: NDArray) -> NDArray[np.uint16]:
    """The bits of values that are bf16 already."""
    wide = values.astype(np.float32)
    assert not (wide.view(np.uint32) & 0xFFFF).any()
    return (wide.view(np.uint32) >> 16).astype(np.uint16)


def pack(low: int, high: int) -> int:
    return int(low) | int(high) << 16


# ---- instructions ----


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_gives_each_lane_its_pairs(library: ctypes.CDLL, transposed: bool) -> None:
    rows = aligned(32)
    rows[:] = np.arange(256).reshape(32, 8)
    out = np.zeros((32, 4), np.uint32)
    library.load(pointer(rows), ctypes.c_int64(transposed), pointer(out))
    for matrix in range(4):
        elements = rows[8 * matrix : 8 * matrix + 8]
        if transposed:
            elements = elements.T
        for lane in LANES:
            pair = elements[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert out[lane, matrix] == pack(*pair)


def test_mma_multiplies_by_the_table_of_the_isa(library: ctypes.CDLL) -> None:
    """PTX ISA, 'Matrix fragments for mma.m16n8k16 with floating point type'."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-99, 100, (16, 16)), rng.integers(-99, 100, (16, 8))
    d = rng.integers(-999, 1000, (16, 8))
    a_bits, b_bits = bf16(a), bf16(b)
    a_lanes, b_lanes = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    d_lanes = np.zeros((32, 4), np.float32)
    for lane in LANES:
        group, within = lane // 4, lane % 4
        for i in range(8):  # element a_i of the table
            row = group + (8 if i in (2, 3, 6, 7) else 0)
            column = 2 * within + i % 2 + (8 if i >= 4 else 0)
            a_lanes[lane, i // 2] |= int(a_bits[row, column]) << 16 * (i % 2)
        for i in range(4):
            row = 2 * within + i % 2 + (8 if i >= 2 else 0)
            b_lanes[lane, i // 2] |= int(b_bits[row, group]) << 16 * (i % 2)
        for i in range(4):
            d_lanes[lane, i] = d[group + (8 if i >= 2 else 0), 2 * within + i % 2]
    library.multiply(pointer(a_lanes), pointer(b_lanes), pointer(d_lanes))
    product = a @ b + d
    for lane in LANES:
        for i in range(4):
            row, column = lane // 4 + (8 if i >= 2 else 0), 2 * (lane % 4) + i % 2
            assert d_lanes[lane, i] == product[row, column]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("units", "added"), [(0.75, 0), (1.75, 1)])
def test_mma_cuts_off(library: ctypes.CDLL, units: float, added: int, sign: int) -> None:
    """What does not fit into 24 bits is dropped, not rounded."""
    a, b = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    a[0::4, :2] = pack(*bf16(np.array([2.0**-12, 0.0])))  # all rows, k = 0
    b[:] = pack(*bf16(np.array([sign * units * 2.0**-11, 0.0])))
    d = np.full((32, 4), float(sign), np.float32)
    library.multiply(pointer(a), pointer(b), pointer(d))
    assert (d == sign * (1 + added * 2.0**-23)).all()


# In the order of Fault in mma.cpp.
COMPLAINTS = (
    None,
    "is read while a copy is on its way to it",
    "is read while a copy is on its way to it",
    "is read (before it is written|while a copy is on its way|with no barrier after the write)",
    "is written while a copy is on its way to it",
    "a thread leaves copies behind",
    "the source is not aligned to 16 bytes",
    "the launch gives too little shared memory",
    "a warp primitive that not all lanes of its mask reach|different",
    "ldmatrix with a bank conflict",
)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("fault", range(len(COMPLAINTS)))
def test_copies_arrive_when_waited_for(library: ctypes.CDLL, fault: int, seed: int) -> None:
    rows, out = aligned(33)[:32], np.zeros(32, np.uint32)
    rows[:] = np.arange(256).reshape(32, 8)
    message = library.copy(ctypes.c_int64(fault), ctypes.c_int64(seed), pointer(rows), pointer(out))
    complaint = COMPLAINTS[fault]
    if complaint is None:
        assert message is None
        expected = [pack(*rows[lane // 4, 2 * (lane % 4) :][:2]) for lane in LANES]
        assert out.tolist() == expected
        return
    with pytest.raises(RuntimeError, match=complaint):
        if message is not None:
            raise RuntimeError(message.decode())


# ---- x = x1 + x2 + x3 ----


def split(library: ctypes.CDLL, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, n)."""
    planes = np.zeros((3, len(x)), np.uint32)
    library.split_all(ctypes.c_int64(len(x)), pointer(x), pointer(planes))
    assert (planes < 2**16).all()
    return (planes << 16).view(np.float32)


def floats(least: int, most: int) -> NDArray[np.float32]:
    """Of both signs, 2^least <= |x| < 2^most, and the ends of every binade."""
    rng = np.random.default_rng(1)
    exponents = np.arange(least, most)
    significands = [1.0, 1 + 2**-7, 1 + 2**-8, 1 + 2**-8 + 2**-23, 1 + 2**-9, 2 - 2**-8, 2 - 2**-23]
    x = np.concatenate(
        [
            np.ldexp(rng.uniform(1, 2, 20_000), rng.integers(least, most, 20_000)),
            *(np.ldexp(significand, exponents) for significand in significands),
        ]
    ).astype(np.float32)
    return np.concatenate([x, -x, np.zeros(1, np.float32)])


def test_three_planes_hold_a_float(library: ctypes.CDLL) -> None:
    x = floats(-110, 127)
    planes = split(library, x).astype(np.float64)
    assert (planes.sum(0) == x).all()
    assert (np.abs(planes[1]) <= 2.0**-8 * np.abs(x)).all()
    assert (np.abs(planes[2]) <= 2.0**-16 * np.abs(x)).all()


def test_the_first_plane_is_the_nearest_bf16(library: ctypes.CDLL) -> None:
    x = floats(-120, 127)
    nearest = torch.from_numpy(x).bfloat16().float().numpy()
    assert (split(library, x)[0] == nearest).all()


def test_below_the_exact_range_the_error_is_tiny(library: ctypes.CDLL) -> None:
    x = floats(-149, -110)
    error = np.abs(split(library, x).astype(np.float64).sum(0) - x)
    assert 0 < error.max() <= 2.0**-134  # half of the least bf16
