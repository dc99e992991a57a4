from __future__ import annotations

from types import ModuleType

import pytest

from tests.whitebox import build

CAPABILITIES = ("baseline", "avx2", "avx512", "amx")


@pytest.fixture(scope="session")
def whitebox() -> ModuleType:
    """The insides of the CPU kernels, compiled on first use (see build.py)."""
    return build.load()


@pytest.fixture(params=range(len(CAPABILITIES)), ids=CAPABILITIES)
def isa(request: pytest.FixtureRequest, whitebox: ModuleType) -> int:
    """Every copy of the kernels that this processor can run."""
    capability: int = request.param
    if not whitebox.is_supported(capability):
        pytest.skip(f"this processor has no {CAPABILITIES[capability]}")
    return capability
