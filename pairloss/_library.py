"""Loads the libraries of operators, and says what to do where one cannot be loaded.

``_C`` holds the schemas and the CPU kernels, ``_C_cuda`` the CUDA kernels. ``import pairloss``
works without them, because ``impl="reference"`` does; whoever asks for a fused operator gets the
reason from :func:`require`. ``_C_autograd_VERSION`` holds autograd in C++, for one version of
torch alone; without it there is the same in Python, which is slower for small batches.
"""

from __future__ import annotations

import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Status:
    """What is loaded; for what is not, why, and what to do about it."""

    cpu_problem: str | None
    cuda_problem: str | None
    autograd_problem: str | None
    build: dict[str, Any]  # what setup.py noted; empty where nothing was built

    @property
    def cpu_loaded(self) -> bool:
        return self.cpu_problem is None

    @property
    def cuda_loaded(self) -> bool:
        return self.cuda_problem is None

    @property
    def autograd_loaded(self) -> bool:
        return self.autograd_problem is None


def require(device_type: str) -> None:
    """Raise the RuntimeError that says why there is no fused operator for this kind of device."""
    problem = _PROBLEMS.get(device_type, f"pairloss has no kernels for {device_type!r} tensors")
    if problem is not None:
        raise RuntimeError(f'{problem}\nimpl="reference" works without.')


def status() -> Status:
    return _STATUS


def _load() -> Status:
    build = _read_build_info()
    cpu_problem = _load_library("_C", build)
    if cpu_problem is not None:
        cuda_problem: str | None = cpu_problem
    elif torch.version.cuda is None:
        cuda_problem = f"torch {torch.__version__} is a build without CUDA"
    elif build.get("cuda", "unknown") is None:
        cuda_problem = (
            f"pairloss was built without CUDA: {build['no_cuda']}.\n"
            "With a CUDA toolkit at hand, reinstall it:\n"
            "  FORCE_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps ."
        )
    else:
        cuda_problem = _load_library("_C_cuda", build)
    return Status(cpu_problem, cuda_problem, cpu_problem or _load_autograd(build), build)


def _load_autograd(build: dict[str, Any]) -> str | None:
    """Load it. Returns None, or why autograd is in Python."""
    name = "_C_autograd_" + re.sub(r"\W", "_", torch.__version__)  # as setup.py has it
    if not (_FOLDER / f"{name}.so").is_file():
        return f"in Python, because there is no {name}.so: built with torch {build.get('torch')}"
    return _load_library(name, build)


def _read_build_info() -> dict[str, Any]:
    try:
        return dict(json.loads((_FOLDER / "_build_info.json").read_text()))
    except (OSError, ValueError):
        return {}


def _load_library(name: str, build: dict[str, Any]) -> str | None:
    """Load it. Returns None, or what went wrong and what to do."""
    path = _FOLDER / f"{name}.so"
    if not path.is_file():
        return (
            f"pairloss's compiled library is missing: there is no {path}.\n"
            "Build it: `make build` in a checkout, or `pip install --no-build-isolation .`"
        )
    try:
        torch.ops.load_library(path)
    except Exception as error:
        if torch.torch_version.TorchVersion(torch.__version__) < "2.10":
            advice = "pairloss needs torch 2.10 or newer: upgrade torch"
        else:
            advice = "Reinstall it: pip install --no-build-isolation --force-reinstall --no-deps ."
        return (
            f"pairloss could not load {path}: {error.__cause__ or error}\n"
            f"  built for  {_describe(build.get('torch'), build.get('cuda'))}\n"
            f"  you have   {_describe(torch.__version__, torch.version.cuda)}, "
            f"Python {platform.python_version()}\n"
            f"{advice}"
        )
    return None


def _describe(torch_version: str | None, cuda: str | None) -> str:
    return f"torch {torch_version or 'unknown'}, {f'CUDA {cuda}' if cuda else 'no CUDA'}"


_STATUS = _load()
# "meta": shapes only, for which the operators' definitions do.
_PROBLEMS = {
    "cpu": _STATUS.cpu_problem,
    "cuda": _STATUS.cuda_problem,
    "meta": _STATUS.cpu_problem,
}
