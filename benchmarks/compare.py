"""Whether the loss became slower than in the committed record: ``make bench-compare``.

Times are compared as ratios to the matrix products (sgemm) of the same run, so that a machine that
is slower today does not count. Records are kept for each instruction set and number of threads:
``python -m benchmarks.compare --save`` writes that of this machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import table
from benchmarks.record import RESULTS, capability, machine

TOLERANCE = 0.25
ATTEMPTS = 3
TESTS = Path(__file__).with_name("test_micro.py")


def record_path() -> Path:
    return RESULTS / f"micro-{capability()}-{torch.get_num_threads()}threads.json"


def run_tests() -> dict[str, float]:
    """The ratio of each micro benchmark: its median over that of the matrix products beside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "micro.json"
        command = [sys.executable, "-m", "pytest", str(TESTS), "-q", f"--benchmark-json={path}"]
        run = subprocess.run(
            [*command, "--benchmark-disable-gc"],
            cwd=TESTS.parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if run.returncode:
            raise SystemExit(f"{run.stdout}\nThe micro benchmarks failed.")
        return read_ratios(json.loads(path.read_text()))


def read_ratios(content: dict[str, Any]) -> dict[str, float]:
    """From the JSON of pytest-benchmark."""
    ratios = {}
    for entry in content["benchmarks"]:
        extra = entry["extra_info"]
        seconds = entry["stats"]["median"] / extra["calls"]
        ratios[entry["param"]] = seconds / statistics.median(extra["product_seconds"])
    return ratios


def regressions(
    now: dict[str, float], before: dict[str, float], tolerance: float = TOLERANCE
) -> list[str]:
    """Those whose ratio has grown by more than ``tolerance``, and those that are gone."""
    return [
        name
        for name, ratio in before.items()
        if name not in now or now[name] > ratio * (1 + tolerance)
    ]


def comparison(now: dict[str, float], before: dict[str, float]) -> str:
    rows = []
    for name in {**before, **now}:
        ratios = [ratios.get(name) for ratios in (before, now)]
        cells = ["-" if ratio is None else f"{ratio:.3f}" for ratio in ratios]
        both = name in now and name in before
        change = f"{100 * (now[name] / before[name] - 1):+.0f}%" if both else "-"
        rows.append((name, "", *cells, change))
    return table.render(rows, ("time / matrix products", "", "record", "now", "change"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--record", type=Path, help="to compare with, or to write (default: this machine's)")
    add("--save", action="store_true", help="write the record instead")
    add(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="a ratio that is larger by more than this part is a regression (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    path = arguments.record or record_path()
    if not arguments.save and not path.exists():
        print(f"There is no record of such a machine, {path.name}: write one with --save.")
        return 2

    facts = machine()
    now = run_tests()
    if arguments.save:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": facts, "ratios": now}, indent=1) + "\n")
        print(f"{comparison(now, {})}\nWritten to {path}.")
        return 0
    before = json.loads(path.read_text())["ratios"]
    for _ in range(1, ATTEMPTS):
        if not regressions(now, before, arguments.tolerance):
            break
        # A busy moment is no regression: what is slower must be so in every attempt.
        again = run_tests()
        now = {name: min(ratio, again[name]) for name, ratio in now.items()}
    print(comparison(now, before))
    slower = regressions(now, before, arguments.tolerance)
    if slower:
        print(f"Slower by more than {arguments.tolerance:.0%}: {', '.join(slower)}")
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
