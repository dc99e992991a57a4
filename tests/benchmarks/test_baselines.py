from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pairloss
from benchmarks import baselines
from benchmarks.pair_kl_hinge import MARGIN, METHODS, Case, make_step

ROWS = 24
EXACT = ("pairloss", "eager", "compile", "metric-learning", "KeOps")


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(ROWS, 10, generator=generator, dtype=torch.float64)
    return logits, torch.randint(4, (ROWS,), generator=generator)


def expected(batch: tuple[Tensor, Tensor], gradient: str = "both") -> tuple[Tensor, Tensor]:
    leaf = batch[0].clone().requires_grad_()
    loss, stats = pairloss.pair_kl_hinge_loss(
        leaf, batch[1], margin=MARGIN, gradient=gradient, return_stats=True, impl="reference"
    )
    assert 0.1 < stats.active_fraction < 0.9
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.slow] if name in ("compile", "KeOps") else [], id=name
        )
        for name in EXACT
    ],
)
def test_gives_the_loss_of_the_reference(name: str, batch: tuple[Tensor, Tensor]) -> None:
    try:
        step = make_step(METHODS[name], "full", *batch)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    loss, grad = step.run()
    expected_loss, expected_grad = expected(batch)
    torch.testing.assert_close(loss.detach(), expected_loss)
    torch.testing.assert_close(grad, expected_grad)


def test_l2c_is_the_second_argument_form_over_all_ordered_pairs(
    batch: tuple[Tensor, Tensor],
) -> None:
    method = METHODS["L2C PairEnum"]
    loss, grad = make_step(method, "full", *batch).run()
    expected_loss, expected_grad = expected(batch, gradient="second")
    scale = (ROWS - 1) / (2 * ROWS)
    assert method.scale(ROWS) == scale
    torch.testing.assert_close(loss.detach(), scale * expected_loss)
    torch.testing.assert_close(grad, scale * expected_grad)


def test_metric_learning_takes_a_margin_for_each_call(batch: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("pytorch_metric_learning")
    loss = baselines.metric_learning()
    for margin in (1.0, 3.0):
        reference = pairloss.reference.pair_kl_hinge_loss(*batch, margin=margin)
        torch.testing.assert_close(loss(*batch, margin), reference)


@pytest.mark.parametrize("name", ["pairloss", "eager"])
def test_parts_of_a_step(name: str, batch: tuple[Tensor, Tensor]) -> None:
    expected_loss, expected_grad = expected(batch)
    forward = make_step(METHODS[name], "forward", *batch).run()
    assert not forward.requires_grad
    torch.testing.assert_close(forward, expected_loss)
    backward = make_step(METHODS[name], "backward", *batch)
    for _ in range(2):
        torch.testing.assert_close(backward.prepared()(), expected_grad)


def test_work_is_that_of_the_products() -> None:
    case = Case(100, 10)
    assert case.flops == 6 * 100**2 * 10
    parts = [Case(100, 10, what=what).flops for what in ("forward", "backward")]
    assert sum(parts) == case.flops
    assert case.pairs == 4950


@pytest.mark.parametrize("what", ["forward", "backward", "full"])
def test_matrix_products_run(what: str, batch: tuple[Tensor, Tensor]) -> None:
    assert make_step(METHODS["matrix products"], what, *batch).run() is None


def test_memory_estimate_names_what_grows_with_the_cube() -> None:
    small, large = Case(128, 34), Case(4096, 34)
    assert METHODS["L2C PairEnum"].peak_bytes(large) > 8 * 2**30
    assert METHODS["pairloss"].peak_bytes(large) == 32 * METHODS["pairloss"].peak_bytes(small)
