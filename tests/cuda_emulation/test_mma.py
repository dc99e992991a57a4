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


def multiply(
    library: ctypes.CDLL, a: Words, b: Words, d: NDArray[np.float32], tfloat32: bool
) -> None:
    library.multiply(pointer(a), pointer(b), pointer(d), ctypes.c_int64(tfloat32))


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
    multiply(library, a_lanes, b_lanes, d_lanes, tfloat32=False)
    product = a @ b + d
    for lane in LANES:
        for i in range(4):
            row, column = lane // 4 + (8 if i >= 2 else 0), 2 * (lane % 4) + i % 2
            assert d_lanes[lane, i] == product[row, column]


def lanes_of_tfloat32(
    a: NDArray[np.float32], b: NDArray[np.float32], d: NDArray
) -> tuple[Words, Words, NDArray[np.float32]]:
    """PTX ISA, 'Matrix Fragments for mma.m16n8k8', .tf32: a (16, 8), b (8, 8), d (16, 8)."""
    a_lanes, b_lanes = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    d_lanes = np.zeros((32, 4), np.float32)
    for lane in LANES:
        group, within = lane // 4, lane % 4
        for i in range(4):
            row = group if i in (0, 2) else group + 8
            column = within if i in (0, 1) else within + 4
            a_lanes[lane, i] = a.view(np.uint32)[row, column]
        for i in range(2):
            b_lanes[lane, i] = b.view(np.uint32)[within + 4 * i, group]
        for i in range(4):
            d_lanes[lane, i] = d[group + (8 if i >= 2 else 0), 2 * within + i % 2]
    return a_lanes, b_lanes, d_lanes


def test_mma_of_tf32_multiplies_by_the_table_of_the_isa(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-999, 1000, shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
    d = rng.integers(-999, 1000, (16, 8))
    a_lanes, b_lanes, d_lanes = lanes_of_tfloat32(a, b, d)
    multiply(library, a_lanes, b_lanes, d_lanes, tfloat32=True)
    product = a.astype(np.float64) @ b + d
    for lane in LANES:
        for i in range(4):
            row, column = lane // 4 + (8 if i >= 2 else 0), 2 * (lane % 4) + i % 2
            assert d_lanes[lane, i] == product[row, column]


@pytest.mark.parametrize("operand", ["a", "b"])
def test_mma_of_tf32_does_not_look_at_the_last_bits(library: ctypes.CDLL, operand: str) -> None:
    """Ten bits of the significand stay, and the rest is cut off, not rounded."""
    full = np.float32(-1 - 2.0**-10 - 2.0**-11 - 2.0**-23)
    a, b = np.zeros((16, 8), np.float32), np.zeros((8, 8), np.float32)
    a[:, 5] = full if operand == "a" else 1
    b[5] = full if operand == "b" else 1
    a_lanes, b_lanes, d_lanes = lanes_of_tfloat32(a, b, np.zeros((16, 8)))
    multiply(library, a_lanes, b_lanes, d_lanes, tfloat32=True)
    assert (d_lanes == -1 - 2.0**-10).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("units", "added"), [(0.75, 0), (1.75, 1)])
def test_mma_cuts_off(library: ctypes.CDLL, units: float, added: int, sign: int) -> None:
    """What does not fit into 24 bits is dropped, not rounded."""
    a, b = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    a[0::4, :2] = pack(*bf16(np.array([2.0**-12, 0.0])))  # all rows, k = 0
    b[:] = pack(*bf16(np.array([sign * units * 2.0**-11, 0.0])))
    d = np.full((32, 4), float(sign), np.float32)
    multiply(library, a, b, d, tfloat32=False)
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
    """Three bfloat16: (3, n)."""
    planes = np.zeros((3, len(x)), np.float32)
    library.split_into_bfloat16(ctypes.c_int64(len(x)), pointer(x), pointer(planes))
    assert not (planes.view(np.uint32) & 0xFFFF).any()
    return planes


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


def test_two_tf32_hold_all_but_two_bits_of_a_float(library: ctypes.CDLL) -> None:
    x = floats(-100, 127)
    planes = np.zeros((2, len(x)), np.float32)
    library.split_into_tfloat32(ctypes.c_int64(len(x)), pointer(x), pointer(planes))
    assert not (planes.view(np.uint32) & 0x1FFF).any()
    exact, (first, second) = x.astype(np.float64), planes.astype(np.float64)
    nonzero = x != 0
    assert np.max(np.abs(exact - first)[nonzero] / np.abs(exact)[nonzero]) <= 2.0**-11
    error = np.max(np.abs(exact - first - second)[nonzero] / np.abs(exact)[nonzero])
    assert 0 < error <= 2.0**-22


def test_ties_go_to_the_even_tf32(library: ctypes.CDLL) -> None:
    x = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-11, 2 - 2.0**-12], np.float32)
    planes = np.zeros((2, 4), np.float32)
    library.split_into_tfloat32(ctypes.c_int64(4), pointer(x), pointer(planes))
    assert planes[0].tolist() == [1, 1 + 2.0**-9, -1, 2]
