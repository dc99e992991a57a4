from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from pairloss import _library


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many small tensors: on a busy machine most of the time is waiting for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["C++", "Python"])
def autograd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two autograd nodes a plain call gets: both behave alike."""
    if request.param == "Python":
        module = sys.modules["pairloss._ops.pair_kl_hinge"]
        monkeypatch.setattr(module, "_of_labels", None)
    elif not _library.status().autograd_loaded:
        pytest.skip(_library.status().autograd_problem or "")
    return request.param
