from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pairloss import _library

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, **options: object) -> str:
    """What the command prints on its standard output; a failure shows all of it."""
    result = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return str(result.stdout)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, with the switches of its present build: no compiling."""
    folder = tmp_path_factory.mktemp("wheel")
    build = _library.status().build
    switches = {"FORCE_CUDA": "1" if build.get("cuda") else "0"}
    if build.get("cuda"):
        switches["TORCH_CUDA_ARCH_LIST"] = ";".join(build["cuda_archs"])
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir"]
    run(
        *[sys.executable, "-m", "pip", "wheel", *options, folder, ROOT],
        env={**os.environ, **switches},
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that holds nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("site-packages")
    options = ["--quiet", "--no-deps", "--no-index", "--target"]
    run(sys.executable, "-m", "pip", "install", *options, folder, wheel)
    return folder
