"""One unit compiled by several threads at once: every one of them gets the finished file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tests import native_build


def test_threads_that_compile_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_build, "FOLDER", tmp_path / "objects")
    source = tmp_path / "unit.cpp"
    source.write_text("int answer() { return 42; }\n")
    threads = 4
    together = Barrier(threads)

    def compile_unit(_: int) -> Path:
        together.wait()
        return native_build.compile_once("unit.o", ["-c", str(source)], [source])

    with ThreadPoolExecutor(threads) as pool:
        (target,) = set(pool.map(compile_unit, range(threads)))
    assert target.stat().st_size > 0
    assert list(target.parent.iterdir()) == [target]
