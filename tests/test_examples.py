"""The programs in examples/, as their docstrings say to run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def output(*command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    run = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=120,
    )
    return run.stdout


@pytest.mark.slow
def test_distributed() -> None:
    """Two processes print, once, the losses that one would: trained alike, to all shown digits."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    program = ["examples/distributed.py", "--steps", "11", "--method"]
    alone, two = (
        re.findall(r"loss ([\d.]+)", output(*torchrun, world, *program, method))
        for world, method in (("1", "gather"), ("2", "ring"))
    )
    assert len(two) == 2
    assert two == alone
    assert float(two[1]) < 0.1 * float(two[0])
