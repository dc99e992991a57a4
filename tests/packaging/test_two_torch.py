"""One binary, two versions of torch: the wheel built here works unchanged under an older torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.packaging.conftest import ROOT, run

OTHER_TORCH = "2.13.0"
SMOKE = Path(__file__).with_name("smoke.py")


@pytest.fixture(scope="module")
def other_python() -> Path:
    """A Python with another torch: PAIRLOSS_OTHER_PYTHON, else an environment in build/."""
    if given := os.environ.get("PAIRLOSS_OTHER_PYTHON"):
        return Path(given)
    if os.environ.get("PAIRLOSS_TWO_TORCH") != "1":
        pytest.skip(
            f"fetches torch {OTHER_TORCH}: set PAIRLOSS_TWO_TORCH=1, or PAIRLOSS_OTHER_PYTHON to a "
            "Python that has another torch"
        )
    environment = ROOT / "build" / f"torch-{OTHER_TORCH}"
    python = environment / "bin" / "python"
    if not (environment / "complete").exists():
        run(sys.executable, "-m", "venv", "--clear", environment)
        fetched = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", f"torch=={OTHER_TORCH}"],
            capture_output=True,
            text=True,
        )
        if fetched.returncode != 0:
            pytest.skip(f"pip could not fetch torch {OTHER_TORCH}: {fetched.stderr[-300:]}")
        (environment / "complete").touch()
    return python


def smoke(python: Path | str, installed: Path) -> str:
    # From the root folder: the checkout is not on the path, the installed wheel alone.
    return run(python, SMOKE, cwd="/", env={**os.environ, "PYTHONPATH": str(installed)})


@pytest.mark.two_torch
def test_wheel_gives_the_same_bits_under_another_torch(installed: Path, other_python: Path) -> None:
    version = run(other_python, "-c", "import torch; print(torch.__version__)").split()[-1]
    assert version.partition("+")[0] != torch.__version__.partition("+")[0]
    assert smoke(other_python, installed) == smoke(sys.executable, installed)


def test_wheel_works_here(installed: Path) -> None:
    assert "0x" in smoke(sys.executable, installed)
