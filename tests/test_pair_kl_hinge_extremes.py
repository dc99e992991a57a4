"""Degenerate batches, and logits at the ends of what their dtype holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pairloss import pair_kl_hinge_loss
from tests import truth
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")
INF, NAN = float("inf"), float("nan")
REDUCTIONS = ("mean", "sum", "none")
GRADIENTS = ("both", "second")
IMPLEMENTATIONS = ("fused", "reference")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

implementations = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
gradients = pytest.mark.parametrize("gradient", GRADIENTS)
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


def upstream_for(loss: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return (torch.rand(loss.shape, dtype=loss.dtype, generator=generator) + 0.5).to(loss.device)


def evaluate(
    logits: torch.Tensor, labels: torch.Tensor, **options: object
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Loss; gradient with a random upstream; that upstream."""
    logits = logits.detach().requires_grad_()
    loss = pair_kl_hinge_loss(logits, labels, **options)
    upstream = upstream_for(loss)
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    # The kernels that give the value alone say the same.
    with torch.no_grad():
        value = pair_kl_hinge_loss(logits, labels, **options)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-5, atol=1e-30, equal_nan=True)
    return loss, grad, upstream.double().cpu().numpy()


def check(
    logits: torch.Tensor,
    labels: torch.Tensor,
    device: torch.device,
    *,
    margin: float = 2.0,
    gradient: str = "both",
    reduction: str = "mean",
    impl: str = "fused",
    scale: float = 1e-30,
    loss_tolerance: float | None = None,
    grad_tolerance: float | None = None,
) -> None:
    """Loss and gradient equal the truth."""
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), margin)
    options = {"margin": margin, "gradient": gradient, "reduction": reduction, "impl": impl}
    loss, grad, upstream = evaluate(logits.to(device), labels.to(device), **options)
    tolerance = TOLERANCES[logits.dtype]
    assert_close(loss, expected.loss(reduction), loss_tolerance or tolerance.loss, "loss", scale)
    assert_close(
        grad,
        expected.grad(gradient, reduction, upstream),
        grad_tolerance or tolerance.grad,
        "gradient",
        scale,
    )


# ---- No pairs ----------------------------------------------------------------------------------


@implementations
@reductions
@pytest.mark.parametrize(
    "labels",
    [[], [3], [-100], [-100] * 5, [-100, -100, 8, -100]],
    ids=["no rows", "one row", "one ignored row", "all ignored", "one valid row"],
)
def test_no_pair(labels: list[int], reduction: str, impl: str, device: torch.device) -> None:
    logits = torch.randn(len(labels), 7, device=device, requires_grad=True)
    y = torch.tensor(labels, dtype=torch.int64, device=device)
    loss, stats = pair_kl_hinge_loss(logits, y, reduction=reduction, impl=impl, return_stats=True)
    assert loss.shape == ((len(labels),) if reduction == "none" else ())
    assert (loss == 0).all()
    assert all(value == 0 for value in stats)
    loss.backward(upstream_for(loss))
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape
    assert (logits.grad == 0).all()


@implementations
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_row_without_partners_has_no_effect(
    value: float, impl: str, device: torch.device
) -> None:
    logits = torch.full((3, 4), value, device=device)
    labels = torch.tensor([-100, 5, -100], device=device)
    loss, grad, _ = evaluate(logits, labels, impl=impl)
    assert loss == 0
    assert (grad == 0).all()


# ---- One kind of pairs -------------------------------------------------------------------------


@implementations
@gradients
@reductions
@pytest.mark.parametrize("kind", ["similar", "dissimilar"])
def test_one_kind_of_pairs(
    kind: str, reduction: str, gradient: str, impl: str, device: torch.device
) -> None:
    logits = torch.from_numpy(np.random.default_rng(1).standard_normal((40, 12)))
    labels = torch.zeros(40, dtype=torch.int64) if kind == "similar" else torch.arange(40)
    margin = truth.margin_in_a_gap(truth.evaluate(logits, labels, 2.0).divergence, 0.8)
    options = {"margin": margin, "gradient": gradient, "reduction": reduction, "impl": impl}
    check(logits.float(), labels, device, **options)


@implementations
@gradients
def test_identical_rows(gradient: str, impl: str, device: torch.device) -> None:
    """Similar: nothing. Dissimilar: the margin, and no gradient, for KL is at its minimum."""
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(2)).repeat(33, 1) * 3
    loss, grad, _ = evaluate(
        logits.to(device),
        torch.zeros(33, dtype=torch.int64, device=device),
        gradient=gradient,
        impl=impl,
    )
    assert abs(loss.item()) < 1e-6
    assert grad.abs().max() < 1e-7
    loss, grad, _ = evaluate(
        logits.to(device),
        torch.arange(33, device=device),
        gradient=gradient,
        impl=impl,
        margin=1.25,
    )
    assert_close(loss, 2.5, 1e-6)
    assert grad.abs().max() < 1e-7


@implementations
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [3, 140])
def test_at_the_margin_a_pair_is_not_active(
    rows: int, dtype: torch.dtype, impl: str, device: torch.device
) -> None:
    """Of one class only, the divergence is exactly 0, and so may the margin be."""
    labels = torch.arange(rows, device=device)
    for requires_grad in (False, True):
        logits = torch.randn(rows, 1, device=device).to(dtype).requires_grad_(requires_grad)
        loss, stats = pair_kl_hinge_loss(logits, labels, margin=0.0, impl=impl, return_stats=True)
        assert stats.active_fraction == 0
        assert loss == 0


@implementations
@gradients
@pytest.mark.parametrize("columns", [10, 500])
def test_nearly_uniform(columns: int, gradient: str, impl: str, device: torch.device) -> None:
    """How training starts. The loss is 1e-6 of the terms that a careless formula subtracts."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(128, columns, generator=generator) * 1e-3
    labels = torch.zeros(128, dtype=torch.int64)
    check(
        logits,
        labels,
        device,
        gradient=gradient,
        impl=impl,
        loss_tolerance=1e-6 if impl == "fused" else 1e-2,
        grad_tolerance=1e-3 if impl == "fused" else 1e-2,
    )


@pytest.mark.parametrize("offset", [0.0, 100.0, -3e4])
def test_nearly_uniform_with_an_offset(offset: float, device: torch.device) -> None:
    """An offset common to a row's logits changes nothing but how they are rounded."""
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(64, 10, generator=generator) * 1e-1).double() + offset
    labels = torch.arange(64) % 2
    check(logits.float(), labels, device, loss_tolerance=2e-6, grad_tolerance=1e-4)


# ---- Large logits ------------------------------------------------------------------------------


@implementations
@gradients
@reductions
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["one-hot", "mixed"])
def test_large_logits(
    kind: str,
    dtype: torch.dtype,
    reduction: str,
    gradient: str,
    impl: str,
    device: torch.device,
) -> None:
    """P is 0 or 1 to the last bit; divergences are 0 or tens of thousands, or a mixture."""
    rng = np.random.default_rng(6)
    hot = rng.integers(0, 7, 36)
    logits = np.where(np.arange(7) == hot[:, None], 1e4, -1e4)
    if kind == "mixed":  # every third row is ordinary, every third has some large entries
        logits[::3] = rng.standard_normal((12, 7))
        logits[1::3] *= rng.random((12, 7)) < 0.5
    labels = torch.from_numpy(rng.integers(0, 5, 36))
    z = torch.from_numpy(logits).to(dtype)
    # Log-probabilities of 20,000 have lost 5 digits in the truth too. In the reference they meet in
    # sums that are 0 but for rounding.
    tolerance = TOLERANCES[dtype].grad * (1000 if impl == "reference" else 10)
    options = {"gradient": gradient, "reduction": reduction, "impl": impl}
    check(z, labels, device, grad_tolerance=tolerance, **options)


@implementations
@gradients
@pytest.mark.parametrize("size", [1e30, 1e38, 3.4e38])
def test_logits_at_the_end_of_float32(
    size: float, gradient: str, impl: str, device: torch.device
) -> None:
    """Divergences beyond float32. Dissimilar: out of reach. Similar: no NaN, huge or infinite."""
    logits = torch.tensor([[size, -size, 0.0], [-size, size, 0.0], [0.0, size, -size]])
    labels = torch.tensor([0, 1, 2])
    loss, grad, _ = evaluate(logits.to(device), labels.to(device), gradient=gradient, impl=impl)
    # The second and third row are the same class to every digit: they have the full margin.
    assert_close(loss, 2 * 2.0 / 3, 1e-6)
    assert (grad == 0).all()

    loss = pair_kl_hinge_loss(
        logits.to(device), labels.to(device) * 0, gradient=gradient, impl=impl
    )
    assert loss > 1e29


# ---- Masked classes: logits of -inf -----------------------------------------------------------


@implementations
@gradients
@reductions
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_same_columns_masked_in_all_rows(
    dtype: torch.dtype, reduction: str, gradient: str, impl: str, device: torch.device
) -> None:
    """As if these columns were not there."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(33, 70, generator=generator).to(dtype)
    logits[:, [0, 31, 32, 64, 69]] = -INF
    labels = torch.arange(33) % 4
    divergence = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0).divergence
    margin = truth.margin_in_a_gap(divergence, float(np.median(divergence)))
    options = {"margin": margin, "gradient": gradient, "reduction": reduction, "impl": impl}
    check(logits, labels, device, **options)

    shown = (logits[0] != -INF).nonzero().squeeze(1)
    options = {"margin": margin, "gradient": gradient, "reduction": reduction, "impl": impl}
    loss, grad, _ = evaluate(logits.to(device), labels.to(device), **options)
    alone, alone_grad, _ = evaluate(logits[:, shown].to(device), labels.to(device), **options)
    tolerance = TOLERANCES[dtype]
    assert_close(loss, alone.detach().double().cpu(), tolerance.loss)
    assert_close(grad[:, shown.to(device)], alone_grad.double().cpu(), tolerance.grad)
    assert (grad[:, 0] == 0).all()


def different_masks(rows: int, columns: int, similar: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A third of the rows masks a column of its own; dissimilar rows or pairs of similar ones.

    The rows of a similar pair mask the same column.
    """
    generator = torch.Generator().manual_seed(rows + columns)
    logits = torch.randn(rows, columns, generator=generator)
    labels = torch.arange(rows) // 2 if similar else torch.arange(rows)
    for row in range(rows):
        if row // 2 % 3 == 1:
            logits[row, row // 2 % columns] = -INF
    return logits, labels


@implementations
@gradients
@reductions
@pytest.mark.parametrize("rows", [12, 70, 131])  # one tile; two; two of the next size
@pytest.mark.parametrize("similar", [False, True], ids=["dissimilar", "similar pairs"])
def test_infinite_divergence_of_dissimilar_pairs(
    similar: bool, rows: int, reduction: str, gradient: str, impl: str, device: torch.device
) -> None:
    """From a row that allows what the other masks KL is infinite: past the margin, no gradient."""
    logits, labels = different_masks(rows, 66, similar)
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0)
    infinite = np.isinf(expected.divergence)
    assert (infinite & expected.dissimilar).any()
    assert not (infinite & expected.similar).any()
    margin = truth.margin_in_a_gap(expected.divergence[~infinite], 0.9)
    assert expected.with_margin(margin).active.any()
    options = {"margin": margin, "gradient": gradient, "reduction": reduction, "impl": impl}
    check(logits, labels, device, **options)
    check(logits.double(), labels, device, **options)


@implementations
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@gradients
def test_infinite_divergence_of_a_similar_pair(
    gradient: str, reduction: str, impl: str, device: torch.device
) -> None:
    """An infinite loss. The row that allows more has no gradient; rows without such a pair do."""
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(9) // 3
    logits[4, 2] = -INF  # 3 and 5 are similar to 4, and allow column 2
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0)
    loss, grad, upstream = evaluate(
        logits.to(device), labels.to(device), gradient=gradient, reduction=reduction, impl=impl
    )
    assert loss == INF
    wanted = expected.grad(gradient, reduction, upstream)
    fine = np.ones(9, dtype=bool)
    if gradient == "both":
        assert np.isnan(wanted[[3, 5]]).all()
        assert not grad[[3, 5]].isfinite().any()
        fine[3:6] = False  # 4 is not told apart from them by all implementations
    assert_close(grad[fine], wanted[fine], TOLERANCES[torch.float32].grad)


@implementations
def test_infinite_divergence_of_a_similar_pair_by_row(impl: str, device: torch.device) -> None:
    """The rows of the pair are infinite, the others are not."""
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(9))
    # Row 3's class is column 0 to every digit, so its divergence to 4 is finite.
    logits[3] = torch.tensor([0.0, -1e4, -1e4, -1e4, -1e4])
    logits[4] = torch.tensor([0.0, 1.0, -INF, 0.5, -1.0])
    logits[5] = torch.tensor([0.0, 1.0, 0.0, -INF, -1.0])
    labels = torch.arange(9) // 3
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0).loss("none")
    assert np.flatnonzero(np.isinf(expected)).tolist() == [4, 5]
    for dtype in (torch.float32, torch.float64):
        loss = pair_kl_hinge_loss(
            logits.to(device, dtype), labels.to(device), reduction="none", impl=impl
        )
        assert_close(loss, expected, 1e-6)


@implementations
@gradients
@reductions
def test_all_but_one_class_masked(
    reduction: str, gradient: str, impl: str, device: torch.device
) -> None:
    """P is exactly one-hot. Rows on the same class are equal, all others infinitely far apart."""
    hot = torch.arange(20) % 4
    logits = torch.where(torch.arange(4) == hot[:, None], 3.0, -INF)
    check(logits, hot, device, gradient=gradient, reduction=reduction, impl=impl, scale=1.0)
    check(logits, torch.arange(20), device, gradient=gradient, reduction=reduction, impl=impl)


# ---- NaN and +inf: never hidden ---------------------------------------------------------------


@implementations
@gradients
@reductions
@pytest.mark.parametrize("rows", [5, 140])
@pytest.mark.parametrize(
    "values", [{0: NAN}, {9: NAN}, {4: INF}, {0: INF, 9: INF}, {4: INF, 5: -INF}]
)
@pytest.mark.parametrize("labels", ["similar", "dissimilar"])
def test_not_a_number_in_a_valid_row(
    labels: str,
    values: dict[int, float],
    rows: int,
    reduction: str,
    gradient: str,
    impl: str,
    device: torch.device,
) -> None:
    logits = torch.randn(rows, 10, generator=torch.Generator().manual_seed(1))
    y = torch.arange(rows) if labels == "dissimilar" else torch.zeros(rows, dtype=torch.int64)
    y[0] = -100
    for column, value in values.items():
        logits[3, column] = value
    loss, grad, _ = evaluate(
        logits.to(device), y.to(device), reduction=reduction, gradient=gradient, impl=impl
    )
    assert loss.isnan().any()
    assert grad[3].isnan().all()
    if reduction != "none":
        assert loss.isnan()
    assert (grad[0] == 0).all()
    stats = pair_kl_hinge_loss(logits.to(device), y.to(device), impl=impl, return_stats=True)[1]
    assert (stats.similar_loss + stats.dissimilar_loss).isnan()


@implementations
@gradients
def test_a_row_with_every_class_masked_is_not_a_distribution(
    gradient: str, impl: str, device: torch.device
) -> None:
    logits = torch.randn(6, 4)
    logits[2] = -INF
    loss, grad, _ = evaluate(
        logits.to(device), torch.arange(6, device=device) % 2, gradient=gradient, impl=impl
    )
    assert loss.isnan()
    assert grad[2].isnan().all()


@implementations
@gradients
@reductions
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_ignored_rows_have_no_effect(
    value: float, reduction: str, gradient: str, impl: str, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 10, generator=generator)
    labels = torch.arange(40) % 3
    labels[[0, 7, 39]] = -100
    clean, poisoned = logits.clone(), logits.clone()
    clean[labels == -100] = 0.0
    poisoned[0], poisoned[7, 3], poisoned[39, 9] = value, value, value
    options = {"reduction": reduction, "gradient": gradient, "impl": impl}
    results = [evaluate(z.to(device), labels.to(device), **options)[:2] for z in (clean, poisoned)]
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(actual, expected)
    assert (results[1][1][labels.to(device) == -100] == 0).all()
    check(clean, labels, device, **options)
