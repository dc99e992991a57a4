"""What a benchmark run leaves: a JSON file with the machine, the settings and all raw samples."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import pairloss
from benchmarks.pair_kl_hinge import METHODS, Case, Method
from benchmarks.timing import spread
from pairloss.env_report import report

FORMAT = 1
# In the order of torch.ops.pairloss.cpu_capability().
CAPABILITIES = ("default", "avx2", "avx512", "amx")
RESULTS = Path(__file__).parent / "results"


@dataclass
class Result:
    """One method on one case: samples, in seconds a call, or why there are none."""

    case: Case
    method: str
    seconds: list[float] = field(default_factory=list)
    calls: int = 1  # in each sample
    problem: str | None = None
    peak_bytes: int | None = None  # beyond the inputs
    peak_problem: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        return spread(self.seconds)

    @property
    def pairs_per_second(self) -> float:
        return self.case.pairs / self.median

    @property
    def gflops(self) -> float:
        """Of the plain form's arithmetic: what skips some of it can pass the machine's peak."""
        return self.case.flops / self.median / 1e9


@dataclass
class Record:
    machine: dict[str, Any]
    settings: dict[str, Any]
    results: list[Result]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "benchmark": "pair_kl_hinge", **asdict(self)}
        # Saved again after every case: a run that is ended in between keeps the one before.
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, path)

    @staticmethod
    def load(path: Path) -> Record:
        content = json.loads(path.read_text())
        if content.get("format") != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, got {content.get('format')!r}")
        results = [
            Result(**{**result, "case": Case(**result["case"])}) for result in content["results"]
        ]
        return Record(content["machine"], content["settings"], results)


def speedup(result: Result, results: Sequence[Result]) -> float | None:
    """How many times faster than the better baseline of the same kind on the same case."""
    method = METHODS[result.method]
    if method.yardstick:
        return None
    return _ratio(result, results, lambda m: m.baseline and m.graphed == method.graphed)


def over_products(result: Result, results: Sequence[Result]) -> float | None:
    """How many times faster than the matrix products of the same size."""
    return _ratio(result, results, lambda method: method.yardstick)


def _ratio(
    result: Result, results: Sequence[Result], chosen: Callable[[Method], bool]
) -> float | None:
    others = [
        other.median
        for other in results
        if other.case == result.case and other.seconds and chosen(METHODS[other.method])
    ]
    return min(others) / result.median if others and result.seconds else None


def capability() -> str:
    """The value of PAIRLOSS_CPU_CAPABILITY that stands for the CPU kernels in use."""
    return CAPABILITIES[torch.ops.pairloss.cpu_capability()]


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where the samples were taken, with the versions of what took part."""
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "pairloss": pairloss.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "capability": capability(),
        **{name: value for name, value in _env_report().items() if name in _REPORTED},
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu memory"] = properties.total_memory
        facts["multiprocessors"] = properties.multi_processor_count
    return facts


_REPORTED = ("torch", "built with", "built for", "CPU kernels", "CPU", "GPUs")


def _env_report() -> dict[str, str]:
    """The rows of :mod:`pairloss.env_report`: a name, two spaces or more, and a value."""
    rows = (line.partition("  ") for line in report().splitlines() if not line.startswith(" "))
    return {name: value.strip() for name, _, value in rows}


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of this checkout, with a + where files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        run = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
