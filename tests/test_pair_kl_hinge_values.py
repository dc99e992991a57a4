"""The value and the statistics against the float64 truth, over the grid of cases.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pairloss import PairStats, pair_kl_hinge_loss
from tests import cases, truth
from tests.cases import Case
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")
REDUCTIONS = ("mean", "sum", "none")
# Where the reference's (N, N, K) tensors are small.
SMALL = [case for case in cases.GRID if case.rows**2 * case.columns < 2e5]


def as_array(stats: PairStats) -> np.ndarray:
    return torch.stack(stats).cpu().numpy()


def check_values(case: Case, device: torch.device, impl: str) -> None:
    batch = cases.make(case)
    logits, labels = batch.to(device)
    tolerance = TOLERANCES[case.dtype].loss
    for reduction in REDUCTIONS:
        expected = batch.truth.loss(reduction)
        for grad_enabled in (True, False):  # two kernels: with the gradient, and the value alone
            what = f"{reduction}, gradient {'on' if grad_enabled else 'off'}"
            with torch.set_grad_enabled(grad_enabled):
                loss, stats = pair_kl_hinge_loss(
                    logits,
                    labels,
                    margin=batch.margin,
                    reduction=reduction,
                    return_stats=True,
                    impl=impl,
                )
            assert loss.dtype == (
                torch.float64 if case.dtype == torch.float64 else torch.float32
            ), what
            assert loss.device == logits.device
            assert loss.requires_grad == grad_enabled
            assert_close(loss, expected, tolerance, f"loss, {what}")
            check_stats(stats, batch.truth, reduction, tolerance, what)
            if reduction != "none":
                assert_close(stats.similar_loss + stats.dissimilar_loss, loss.detach().cpu(), 1e-6)


def check_stats(
    stats: PairStats, expected: truth.Truth, reduction: str, tolerance: float, what: str
) -> None:
    values = expected.stats(reduction)
    for value in stats:
        assert value.dtype == torch.float64
        assert value.shape == ()
        assert not value.requires_grad
    np.testing.assert_array_equal(as_array(stats)[:2], values[:2], what)
    np.testing.assert_allclose(as_array(stats)[2], values[2], rtol=1e-7, err_msg=what)
    # Each part relative to the loss: one of them may be nothing but rounding.
    assert_close(as_array(stats)[3:], values[3:], tolerance, f"parts, {what}")


@pytest.mark.parametrize("case", cases.GRID, ids=str)
def test_fused_equals_the_truth(case: Case, device: torch.device) -> None:
    check_values(case, device, "fused")


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_reference_equals_the_truth(case: Case, device: torch.device) -> None:
    check_values(case, device, "reference")


@pytest.mark.parametrize(("rows", "columns"), [(600, 10), (1100, 34)])
def test_several_large_tiles(rows: int, columns: int, device: torch.device) -> None:
    """The CPU's tiles have 256 rows from N = 513 on."""
    check_values(
        Case(rows, columns, "lopsided", 2.0, torch.float32, "contiguous", "some"), device, "fused"
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_expanded_rows_are_identical(reduction: str, device: torch.device) -> None:
    """Stride 0: every divergence is 0, every dissimilar pair has the full margin."""
    rows = 65
    logits = torch.randn(1, 34, device=device).expand(rows, 34)
    labels = torch.arange(rows, device=device) % 2
    loss, stats = pair_kl_hinge_loss(
        logits, labels, margin=1.5, reduction=reduction, return_stats=True
    )
    expected = truth.evaluate(logits.cpu().numpy(), labels.cpu().numpy(), 1.5)
    assert_close(loss, expected.loss(reduction), 1e-6)
    assert stats.active_fraction == 1
