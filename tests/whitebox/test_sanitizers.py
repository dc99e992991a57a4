"""That `make sanitize` would find a bug: it finds two planted ones."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from tests.native_build import SANITIZE


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
