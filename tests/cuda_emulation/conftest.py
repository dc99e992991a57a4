from __future__ import annotations

import ctypes

import pytest

from tests.cuda_emulation.emulation import Kernels, build
from tests.native_build import SANITIZE


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """The CUDA kernels on the emulation."""
    return Kernels(build("pair_kl_hinge"))


# The emulated tensor cores are slow under sanitizers; test_tensor_*.py have them for those.
WAYS = ["small", "fma"] if SANITIZE else ["small", "fma", "tensor", "certified"]


@pytest.fixture(params=WAYS)
def each_way(kernels: Kernels, request: pytest.FixtureRequest) -> Kernels:
    """Small batches have a kernel of their own; the tiled ones must be right for them, too, and so
    must those that order the rows first and skip certain tiles."""
    if request.param == "small":
        return kernels
    if request.param == "certified":
        return Kernels(kernels.library, tiled=True, certified=True)
    return Kernels(kernels.library, tiled=True, arithmetic=request.param)


@pytest.fixture(scope="session")
def bad_kernels() -> ctypes.CDLL:
    """Kernels that the emulation must refuse."""
    library = build("bad_kernels")
    library.run_kernel.restype = ctypes.c_char_p
    library.run_kernel.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    return library
