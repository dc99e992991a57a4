"""The programs in examples/, as their docstrings say to run them."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pairloss

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
        timeout=600,
    )
    return run.stdout


@pytest.mark.slow
def test_distributed() -> None:
    """Two processes print, once, the losses of one that has the whole batch."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = ["examples/distributed.py", "--steps", "11", "--method", "ring"]
    losses = re.findall(r"loss ([\d.]+)", output(*torchrun, *program))

    example = runpy.run_path(str(ROOT / "examples" / "distributed.py"))
    torch.manual_seed(0)
    network = example["make_network"]()
    inputs, labels = example["global_batch"](0)
    expected = pairloss.pair_kl_hinge_loss(network(inputs), labels, gradient="second")
    assert len(losses) == 2
    assert float(losses[0]) == pytest.approx(expected.item(), rel=1e-6)
    assert float(losses[1]) < 0.1 * float(losses[0])
