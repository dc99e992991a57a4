"""The global batch over 1, 2, 3 and 4 processes against one process that has all rows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import pairloss
import pairloss.distributed
from tests.distributed.scenarios import METHODS, SCENARIOS, SPLITS, Scenario, model
from tests.tolerances import TOLERANCES, assert_close

ROOT = Path(__file__).resolve().parents[2]
WORLD = max(SPLITS)

worlds = pytest.mark.parametrize("world", SPLITS)
methods = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What every rank of four gloo processes saved."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.distributed.scenarios", str(folder / "store")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([*command, str(rank), str(WORLD), str(folder)], cwd=ROOT, env=environment)
        for rank in range(WORLD)
    ]
    try:
        until = time.monotonic() + 600
        # One that fails leaves the others waiting for it.
        while any(p.poll() is None for p in running) and not any(p.poll() for p in running):
            assert time.monotonic() < until, "the ranks hang"
            time.sleep(0.05)
        assert [process.poll() for process in running] == [0] * WORLD
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def of_group(ranks: list[dict[Any, Any]], *key: Any) -> list[dict[str, Any]]:
    """By rank in the group of key[0] ranks, which are the last ones."""
    return [results[key] for results in ranks[WORLD - key[0] :]]


def tolerance_of(scenario: Scenario) -> float:
    return 1e-12 if scenario.dtype == torch.float64 else 1e-6


@methods
@worlds
@pytest.mark.parametrize("name", SCENARIOS)
def test_equals_one_process(
    name: str, world: int, method: str, ranks: list[dict[Any, Any]]
) -> None:
    scenario = SCENARIOS[name]
    logits, labels, weights = scenario.batch()
    logits.requires_grad_()
    expected, stats = pairloss.pair_kl_hinge_loss(
        logits, labels, sample_weights=weights, return_stats=True, **scenario.options
    )
    (grad,) = torch.autograd.grad(expected, logits, torch.tensor(-1.7, dtype=expected.dtype))
    results = of_group(ranks, world, method, name)
    tolerance = tolerance_of(scenario)
    for result in results:
        for key in ("loss", "value"):  # with the gradient, and without
            assert result[key].dtype == expected.dtype
            assert_close(result[key], expected.detach(), tolerance, key)
            assert torch.equal(result[key], results[0][key]), "not the same on all ranks"
        assert_close(result["stats"][:2], torch.stack(stats)[:2], 0, "numbers of pairs")
        assert_close(result["stats"], torch.stack(stats), tolerance, "stats")
    grads = torch.cat([result["grad"] for result in results])
    assert grads.dtype == scenario.dtype
    of_grad = max(tolerance, TOLERANCES[scenario.dtype].grad) if tolerance > 1e-9 else tolerance
    assert_close(grads, grad.double(), of_grad, "gradient")


@methods
@worlds
def test_training_under_ddp(world: int, method: str, ranks: list[dict[Any, Any]]) -> None:
    """The same losses and parameter gradients as without, whatever the number of ranks."""
    logits, labels, _ = Scenario().batch()
    alone = model()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.3)
    expected: dict[str, torch.Tensor] = {}
    for step in range(2):
        optimizer.zero_grad()
        loss = pairloss.pair_kl_hinge_loss(alone(logits), labels)
        loss.backward()
        expected[f"loss {step}"] = loss.detach()
        for name, parameter in alone.named_parameters():
            expected.setdefault(name, parameter.grad.clone())
        optimizer.step()
    for result in of_group(ranks, world, method, "ddp"):
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            # The last bias shifts all logits of a class alike: its gradient is rounding.
            assert_close(result[name], value, 1e-10, name, scale=1e-3)
    assert expected["loss 1"] < expected["loss 0"]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_every_rank_is_told_of_a_disagreement(world: int, ranks: list[dict[Any, Any]]) -> None:
    for messages in of_group(ranks, world, "disagreement"):
        assert messages.keys() == {"columns", "dtype", "levels", "sample_weights"}
        assert "the same columns on all ranks, got [4, 5" in messages["columns"]
        assert "got ['torch.float64', 'torch.float32'" in messages["dtype"]


def test_the_wrapper_of_pytorch_metric_learning(ranks: list[dict[Any, Any]]) -> None:
    """It multiplies the loss by the number of processes, for DDP to average the gradients."""
    pytest.importorskip("pytorch_metric_learning")
    logits, labels, _ = Scenario().batch()
    logits = logits[:12].requires_grad_()
    expected = pairloss.pair_kl_hinge_loss(logits, labels[:12])
    (grad,) = torch.autograd.grad(WORLD * expected, logits)
    results = [rank["metric learning"] for rank in ranks]
    for result in results:
        assert_close(result["loss"], WORLD * expected.detach(), 1e-12)
        assert "efficient=False" in result["efficient"]
    assert_close(torch.cat([result["grad"] for result in results]), grad, 1e-12)


def test_without_a_process_group() -> None:
    logits, labels, _ = Scenario().batch()
    expected = pairloss.pair_kl_hinge_loss(logits, labels)
    module = pairloss.distributed.PairKLHingeLoss(margin=2.0)
    assert_close(module(logits, labels), expected, 1e-13)
    assert repr(module) == "PairKLHingeLoss(margin=2.0)"


def test_bad_arguments() -> None:
    logits, labels, _ = Scenario().batch()
    loss = pairloss.distributed.pair_kl_hinge_loss
    with pytest.raises(ValueError, match='reduction: expected "mean" or "sum"'):
        loss(logits, labels, reduction="none")
    with pytest.raises(ValueError, match='method: expected one of "gather", "ring"'):
        loss(logits, labels, method="tree")
    with pytest.raises(TypeError, match="expected options among .*margin.*, got marge"):
        pairloss.distributed.PairKLHingeLoss(marge=2.0)
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(loss(logits, labels), logits, create_graph=True)
    with pytest.raises(RuntimeError, match='impl="reference"'):
        grad.sum().backward()
