"""O(N K) memory: nothing of size N x N, at a size where that would be seen; and right there too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import truth
from tests.native_build import SANITIZE
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(SANITIZE, reason="the sanitizers take memory of their own")

# As many groups as this of rows that are alike, so that the truth is small at any number of rows.
GROUPS = 90

PROGRAM = """
import json, sys, torch
from pairloss import pair_kl_hinge_loss
from tests.test_pair_kl_hinge_memory import GROUPS, make_rows

def peak_kib(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":"))

def step(rows, columns, margin, reduction):
    logits, labels = make_rows(rows, columns)
    logits.requires_grad_()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far is forgotten
    before = peak_kib("VmRSS")
    loss = pair_kl_hinge_loss(logits, labels, margin=margin, reduction=reduction)
    loss.sum().backward()
    return peak_kib("VmHWM") - before, loss.sum().item(), logits.grad[:GROUPS].tolist()

rows, columns, margin, reduction = json.loads(sys.argv[1])
step(1500, columns, margin, reduction)  # threads are started, code is loaded
print(json.dumps(step(rows, columns, margin, reduction)))
"""


def make_rows(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row i is row i % GROUPS."""
    generator = torch.Generator().manual_seed(columns)
    logits = torch.randn(GROUPS, columns, generator=generator)
    group = torch.arange(rows) % GROUPS
    return logits[group], group % 10


def check(rows: int, columns: int, reduction: str, most_mib: float) -> None:
    """Value, gradient, and the peak of forward and backward beyond the inputs."""
    logits, labels = (x.numpy() for x in make_rows(GROUPS, columns))
    result = truth.evaluate(logits, labels, 0.0)
    dissimilar = result.divergence[result.dissimilar]
    margin = truth.margin_in_a_gap(dissimilar, float(np.median(dissimilar)))
    result = result.with_margin(margin)
    # Rows of one group are similar, at no distance.
    size = np.bincount(np.arange(rows) % GROUPS).astype(float)
    weight = np.outer(size, size) * (2 if reduction == "none" else 2 / (rows * (rows - 1)))
    expected = (weight * result.ordered).sum()
    expected_grad = result.grad("both", "sum", weight) / size[:, None]

    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([rows, columns, margin, reduction])],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    peak_kib, loss, grad = json.loads(run.stdout)
    assert peak_kib / 1024 < most_mib
    assert_close(loss, expected, 1e-5, "loss")
    assert_close(grad, expected_grad, 1e-4, "gradient")


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fifty_thousand_rows(reduction: str) -> None:
    """2.5e9 ordered pairs, more than 32 bits count: 10 GB as float32, 312 MB as bits."""
    check(50_000, 10, reduction, 200)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_columns(reduction: str) -> None:
    """A small multiple of the 16 MiB of logits; an N x N x K tensor would be 16 GiB."""
    check(1024, 4096, reduction, 16 * 12)
