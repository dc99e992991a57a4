"""That `make sanitize` would find a bug: it finds two planted ones. And that no threads race."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.native_build import ROOT, SANITIZE, compile_once, headers
from tests.whitebox import build


def test_module_is_what_was_asked_for(whitebox: ModuleType) -> None:
    assert whitebox.sanitized == SANITIZE


@pytest.mark.skipif(not SANITIZE, reason="make sanitize")
@pytest.mark.parametrize(
    ("bug", "report"),
    [
        ("read_past_the_end(7)", "heap-buffer-overflow"),
        ("overflow_an_int(2**31 - 1)", "signed integer overflow"),
    ],
)
def test_planted_bug_is_found(bug: str, report: str) -> None:
    code = f"from tests.whitebox import build; build.load().{bug}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode != 0
    assert report in run.stderr


@pytest.mark.skipif(not SANITIZE, reason="make sanitize")
def test_no_races() -> None:
    """ThreadSanitizer does not go with the others, nor with Python: a program of its own."""
    main = Path(__file__).parent / "races" / "kernels.cpp"
    sources = [main, *build.kernels()]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{ROOT / 'csrc'}"]
    program = compile_once(
        "races", [*flags, *map(str, sources)], [*headers("*.h", "cpu/*.h"), *sources]
    )
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    run = subprocess.run([program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "active pairs" in run.stdout
