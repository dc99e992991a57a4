"""O(N K) memory: nothing of size N x N, at a size where that would be seen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
from pairloss import pair_kl_hinge_loss

def peak_kib(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":"))

def step(rows, columns, reduction):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, columns, generator=generator).requires_grad_()
    labels = torch.randint(0, 10, (rows,), generator=generator)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far is forgotten
    before = peak_kib("VmRSS")
    loss = pair_kl_hinge_loss(logits, labels, reduction=reduction)
    loss.sum().backward()
    assert logits.grad.isfinite().all()
    return peak_kib("VmHWM") - before

reduction = sys.argv[3]
step(1500, 10, reduction)  # threads are started, code is loaded
print(step(int(sys.argv[1]), int(sys.argv[2]), reduction))
"""


def peak_mib(rows: int, columns: int, reduction: str) -> float:
    """Beyond the inputs, of forward and backward."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(rows), str(columns), reduction],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return int(run.stdout) / 1024


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fifty_thousand_rows(reduction: str) -> None:
    """2.5e9 ordered pairs: 10 GB as float32, 312 MB as bits."""
    assert peak_mib(50_000, 10, reduction) < 200


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_columns(reduction: str) -> None:
    """A small multiple of the 16 MiB of logits; an N x N x K tensor would be 16 GiB."""
    assert peak_mib(1024, 4096, reduction) < 16 * 12
