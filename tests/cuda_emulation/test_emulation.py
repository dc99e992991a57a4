"""The emulation itself: it refuses kernels that are wrong in one way each (bad_kernels.cpp)."""

from __future__ import annotations

import ctypes

import pytest

ASCENDING, DESCENDING, SHUFFLED = 0, 1, 2
ORDERS = [ASCENDING, DESCENDING, SHUFFLED]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", ["right", "warp"])
def test_accepts_a_right_kernel(bad_kernels: ctypes.CDLL, kernel: str, order: int) -> None:
    assert bad_kernels.run_kernel(kernel.encode(), order) is None


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        ("no first barrier", r"read"),  # before it is written, or with no barrier after it
        ("no second barrier", r"with no barrier after the (read|write)"),
        ("divergent", r"threads wait at different barriers"),
        ("early return", r"a thread has returned while others wait at a barrier"),
        ("divergent warp", r"a warp primitive that not all lanes of its mask reach"),
        ("absent lane", r"a shuffle from lane \d+, which takes no part"),
        ("uninitialized", r"an element of value is read before it is written"),
        ("outside", r"index 64 of value is outside its extent of 64"),
        ("guard", r"something wrote behind a buffer"),
    ],
)
def test_refuses_a_wrong_kernel(
    bad_kernels: ctypes.CDLL, kernel: str, complaint: str, order: int
) -> None:
    message = bad_kernels.run_kernel(kernel.encode(), order)
    with pytest.raises(RuntimeError, match=complaint):
        if message is not None:
            raise RuntimeError(message.decode())
