"""The same bits from run to run, at any number of threads, from any thread and any process."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pairloss import pair_kl_hinge_loss
from tests import cases
from tests.cases import Case
from tests.tolerances import TOLERANCES, assert_close

# Three tiles of 128 a side, and five of 256. With fewer rows one thread does everything.
SIZES = (300, 1100)
OPTIONS = [
    {"reduction": "mean", "gradient": "both"},
    {"reduction": "sum", "gradient": "second"},
    {"reduction": "none", "gradient": "both"},
    {"reduction": "none", "gradient": "second"},
]


@pytest.fixture(autouse=True)
def number_of_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_batch(
    rows: int, masked: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = (torch.randn(rows, 34, generator=generator) * 1.3).to(dtype)
    labels = torch.randint(0, 6, (rows,), generator=generator)
    labels[::17] = -100
    if masked:  # by class, so that no similar pair is infinite
        logits[labels == 2, 5] = -torch.inf
        logits[labels == 4, 33] = -torch.inf
    return logits, labels


def evaluate(logits: Tensor, labels: Tensor, **options: str) -> list[Tensor]:
    """Losses, statistics and gradients, with the gradient and without."""
    logits = logits.detach().requires_grad_()
    loss, stats = pair_kl_hinge_loss(logits, labels, return_stats=True, **options)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(loss.shape, generator=generator).to(loss)
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    with torch.no_grad():
        value, value_stats = pair_kl_hinge_loss(logits, labels, return_stats=True, **options)
    results = [loss.detach(), grad, *stats, value, *value_stats]
    assert all(result.isfinite().all() for result in results)
    return results


def assert_identical(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("rows", SIZES)
def test_any_number_of_threads(rows: int, masked: bool, options: dict[str, str]) -> None:
    logits, labels = make_batch(rows, masked)
    torch.set_num_threads(1)
    expected = evaluate(logits, labels, **options)
    for threads in (2, 3, 5, 5, 5):
        torch.set_num_threads(threads)
        assert_identical(evaluate(logits, labels, **options), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_number_of_threads_in_other_dtypes(dtype: torch.dtype, reduction: str) -> None:
    """Sums are float64 also for the others; a float32 result would hide their last digits."""
    logits, labels = make_batch(1100, dtype=dtype)
    torch.set_num_threads(1)
    expected = evaluate(logits, labels, reduction=reduction)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert_identical(evaluate(logits, labels, reduction=reduction), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("rows", (17, *SIZES))
def test_run_to_run(rows: int, options: dict[str, str], device: torch.device) -> None:
    logits, labels = (x.to(device) for x in make_batch(rows))
    expected = evaluate(logits, labels, **options)
    for _ in range(3):
        # Elsewhere in memory, with other rubbish around.
        assert_identical(evaluate(logits.clone(), labels.clone(), **options), expected)


def test_several_python_threads() -> None:
    """Each with threads of its own below."""
    torch.set_num_threads(2)
    batches = [make_batch(300 + 7 * i, masked=i % 2 == 0) for i in range(6)]
    expected = [evaluate(*batch, reduction="mean") for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            results = pool.map(lambda batch: evaluate(*batch, reduction="mean"), batches)
            for actual, wanted in zip(results, expected, strict=True):
                assert_identical(actual, wanted)


# ---- Other processes ---------------------------------------------------------------------------


def evaluate_in_child(connection: multiprocessing.connection.Connection, rows: int) -> None:
    torch.set_num_threads(1)  # as DataLoader's workers do: the pool's threads are not inherited
    connection.send([result.tolist() for result in evaluate(*make_batch(rows), reduction="mean")])


@pytest.mark.parametrize("rows", [17, 300])
def test_forked_process(rows: int) -> None:
    torch.set_num_threads(2)
    expected = evaluate(*make_batch(rows), reduction="mean")
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=evaluate_in_child, args=(sender, rows))
    child.start()
    try:
        assert receiver.poll(60), "the child hangs"
        assert receiver.recv() == [result.tolist() for result in expected]
    finally:
        child.kill()
        child.join()


class Losses(Dataset):
    """A data set whose items are losses."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return pair_kl_hinge_loss(*make_batch(100 + 100 * index))


def test_data_loader_worker() -> None:
    expected = [Losses()[i] for i in range(4)]
    loader = DataLoader(
        Losses(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=600
    )
    assert_identical(list(loader), expected)


# ---- Other instruction sets --------------------------------------------------------------------

CASES = (
    Case(65, 34, "few", 2.0, torch.float32, "contiguous", "some"),
    Case(129, 10, "two", 0.5, torch.bfloat16),
    Case(64, 127, "lopsided", 2.0, torch.float64),
    Case(257, 127, "pairs", 2.0, torch.float32, "strided"),
    Case(17, 3, "different", 2.0, torch.float16),
)


def output_of(function: str, **environment: str) -> Any:
    """What ``function`` of this module prints, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", f"from tests import {Path(__file__).stem} as t; t.{function}()"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(run.stdout)


def print_capability_and_results() -> None:
    results = []
    for case in CASES:
        batch = cases.make(case)
        for reduction in ("mean", "none"):
            logits, labels = batch.to(torch.device("cpu"))
            loss = pair_kl_hinge_loss(logits, labels, margin=batch.margin, reduction=reduction)
            loss.sum().backward()
            with torch.no_grad():
                value = pair_kl_hinge_loss(logits, labels, margin=batch.margin, reduction=reduction)
            results.append([x.double().tolist() for x in (loss.detach(), value, logits.grad)])
    print(json.dumps([torch.ops.pairloss.cpu_capability(), results]))


@pytest.mark.parametrize("name", ["default", "avx2", "avx512", "amx", "nonsense"])
def test_cpu_capability(name: str) -> None:
    """PAIRLOSS_CPU_CAPABILITY chooses; whatever is chosen gives the same to rounding."""
    best = torch.ops.pairloss.cpu_capability()
    capability, results = output_of("print_capability_and_results", PAIRLOSS_CPU_CAPABILITY=name)
    level = {"default": 0, "avx2": 1, "avx512": 2, "amx": 3}.get(name, best)
    assert capability == (level if level <= best else best)
    for case in CASES:
        truth, tolerance = cases.make(case).truth, TOLERANCES[case.dtype]
        for reduction in ("mean", "none"):
            loss, value, grad = results.pop(0)
            assert_close(loss, truth.loss(reduction), tolerance.loss)
            assert_close(value, truth.loss(reduction), tolerance.loss)
            assert_close(grad, truth.grad("both", reduction), tolerance.grad)


# By the least work, and what they take of AVX2, AVX-512 and AMX if nothing is asked for.
WORK = {(16, 10): 1, (38, 34): 1, (39, 34): 2, (99, 34): 2, (100, 34): 3, (257, 34): 3}


def print_gradients() -> None:
    gradients = []
    for rows, columns in WORK:
        logits, labels = cases.make(Case(rows, columns)).to(torch.device("cpu"))
        pair_kl_hinge_loss(logits, labels).backward()
        gradients.append(logits.grad.tolist())
    print(json.dumps(gradients))


def test_little_work_takes_narrow_vectors() -> None:
    """Seen by the bits; a name that is asked for is taken whatever the work."""
    best = torch.ops.pairloss.cpu_capability()
    automatic = output_of("print_gradients", PAIRLOSS_CPU_CAPABILITY="")
    named = [
        output_of("print_gradients", PAIRLOSS_CPU_CAPABILITY=name)
        for name in ("default", "avx2", "avx512", "amx")[: best + 1]
    ]
    for i, capability in enumerate(WORK.values()):
        bits = [gradients[i] for gradients in named]
        expected = bits[min(capability, best)]
        assert bits.count(expected) == 1, "the bits do not tell which one it was"
        assert automatic[i] == expected
