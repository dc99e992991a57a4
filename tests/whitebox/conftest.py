from __future__ import annotations

from types import ModuleType

import pytest

from tests.whitebox import build


@pytest.fixture(scope="session")
def whitebox() -> ModuleType:
    """The insides of the CPU kernels, compiled on first use (see build.py)."""
    return build.load()
