"""The CUDA kernels' own source against the float64 truth, on the emulation of cuda_emulation.h.

Without rows there is nothing to launch: N = 0 is the operator's own business.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import cases, truth
from tests.cases import IGNORE_INDEX, Case
from tests.cuda_emulation.emulation import GRADIENTS, REDUCTIONS, Kernels
from tests.native_build import SANITIZE
from tests.tolerances import TOLERANCES, Tolerance, assert_close

# What takes more than seconds on the emulation is left to machines with a GPU. A tile of 64 rows
# costs the same however few of them exist.
MOST_WORK = 2.5e6 if SANITIZE else 1.7e7
GRID = [
    case
    for case in cases.GRID
    if case.rows > 0 and max(case.rows, 64) ** 2 * case.columns < MOST_WORK
]
DTYPES = [torch.float32, torch.float64]
SMALL = [case for case in GRID if case.columns <= (32 if case.dtype == torch.float64 else 64)]


def check(
    kernels: Kernels,
    logits: Tensor,
    labels: Tensor,
    expected: truth.Truth,
    *,
    tolerance: Tolerance | None = None,
    **options: float | str,
) -> None:
    """Both gradients, all reductions, forward and backward, with an upstream gradient."""
    of_loss, of_grad = tolerance or TOLERANCES[logits.dtype]
    # The forward's gradient is not rounded to half precision.
    full = torch.float64 if logits.dtype == torch.float64 else torch.float32
    of_full_grad = of_grad if tolerance else TOLERANCES[full].grad
    # With one class all divergences and gradients are 0: compare with the margin's order instead.
    scale = len(logits) if logits.shape[1] == 1 else 1e-30
    upstream = torch.randn(len(logits), generator=torch.Generator().manual_seed(7))
    for gradient in GRADIENTS:
        options["margin"], options["gradient"] = expected.margin, gradient
        for reduction in REDUCTIONS:
            what = f"{gradient}, {reduction}"
            loss, stats, grad, _ = kernels.forward(logits, labels, reduction=reduction, **options)
            exact = expected.stats(reduction)
            assert stats[:2].tolist() == exact[:2].tolist()
            assert_close(stats[2], exact[2], 1e-15, what)
            assert_close(stats[3:], exact[3:], of_loss, what)
            assert_close(loss, expected.loss(reduction), of_loss, what)
            if grad is not None:
                exact = expected.grad(gradient, reduction)
                assert_close(grad, exact, of_full_grad, what, scale)
        grad = kernels.backward(upstream, logits, labels, **options).grad
        exact = expected.grad(gradient, "none", upstream.double().numpy())
        assert_close(grad, exact, of_grad, f"{gradient}, backward", scale)


@pytest.mark.parametrize("case", GRID, ids=str)
def test_equals_the_truth(kernels: Kernels, case: Case) -> None:
    batch = cases.make(case)
    check(Kernels(kernels.library, tiled=True), batch.logits, batch.labels, batch.truth)


@pytest.mark.parametrize("case", SMALL[:: 3 if SANITIZE else 1], ids=str)
def test_small_batch_equals_the_truth(kernels: Kernels, case: Case) -> None:
    batch = cases.make(case)
    check(kernels, batch.logits, batch.labels, batch.truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "chunk_rows"), [(257, 64), (200, 128), (64, 64)])
def test_chunks_of_rows(kernels: Kernels, rows: int, chunk_rows: int, dtype: torch.dtype) -> None:
    batch = cases.make(Case(rows, 10, dtype=dtype, ignored="some"))
    check(kernels, batch.logits, batch.labels, batch.truth, chunk_rows=chunk_rows)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(70, 34), (130, 127)])
def test_same_bits_in_any_order_of_threads_and_blocks(
    kernels: Kernels, rows: int, columns: int, dtype: torch.dtype, reduction: str
) -> None:
    logits, labels, margin, _ = cases.make(Case(rows, columns, dtype=dtype, ignored="some"))
    upstream = torch.randn(rows, generator=torch.Generator().manual_seed(5))

    def bits(seed: int) -> list[bytes]:
        options = {"margin": margin, "chunk_rows": 64, "seed": seed}
        loss, stats, grad, _ = kernels.forward(logits, labels, reduction=reduction, **options)
        if reduction == "none":
            grad = kernels.backward(upstream, logits, labels, **options).grad
        return [tensor.numpy().tobytes() for tensor in (loss, stats, grad)]

    ascending = bits(0)
    for seed in (1, 2, 3):
        assert bits(seed) == ascending


def test_memory_is_linear_in_the_rows(kernels: Kernels) -> None:
    def megabytes(rows: int, columns: int) -> float:
        return kernels.workspace_bytes(rows, columns) / 1e6

    assert megabytes(50_000, 10) < 320
    assert megabytes(262_144, 34) < 640
    for rows, columns in [(1024, 4096), (2**20, 10), (2**17, 512), (8192, 4096)]:
        # P and L, their planes, what certificates need, the gradient's sums, and a bounded amount
        # for a chunk of rows.
        padded = -(-columns // 16) * 16
        of_row = 8.7e-6 * columns + 12e-6 * padded
        assert megabytes(rows, columns) < rows * (of_row + 8e-6 * columns + 40e-6) + 370


@pytest.mark.parametrize("dtype", DTYPES)
def test_value_without_a_gradient(each_way: Kernels, dtype: torch.dtype) -> None:
    logits, labels, margin, _ = cases.make(Case(129, 34, dtype=dtype))
    full = each_way.forward(logits, labels, margin=margin)
    value = each_way.forward(logits, labels, margin=margin, with_grad=False)
    assert value.grad is None
    assert torch.equal(value.loss, full.loss)
    assert torch.equal(value.stats, full.stats)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(each_way: Kernels, dtype: torch.dtype) -> None:
    logits, labels, margin, _ = cases.make(Case(65, 34, dtype=dtype))
    upstream = torch.randn(65, generator=torch.Generator().manual_seed(5))
    for gradient in GRADIENTS:
        options = {"margin": margin, "gradient": gradient}
        for half, full in zip(
            each_way.forward(logits, labels, **options)[:3],
            each_way.forward(logits.float(), labels, **options)[:3],
            strict=True,
        ):
            assert torch.equal(half, full)
        half = each_way.backward(upstream, logits, labels, **options).grad
        full = each_way.backward(upstream, logits.float(), labels, **options).grad
        assert torch.equal(half, full.to(dtype))


# ---- rows that take no part ----


@pytest.mark.parametrize("ignored", ["some", "ends", "most"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_ignored_rows_hold_reaches_nothing(
    each_way: Kernels, dtype: torch.dtype, ignored: str
) -> None:
    logits, labels, margin, _ = cases.make(Case(129, 10, dtype=dtype, ignored=ignored))
    out = labels == IGNORE_INDEX
    upstream = torch.randn(129, generator=torch.Generator().manual_seed(3))
    dirty, dirty_upstream = logits.clone(), upstream.clone()
    dirty[out], dirty_upstream[out] = torch.nan, torch.inf
    clean = each_way.forward(logits, labels, margin=margin)
    result = each_way.forward(dirty, labels, margin=margin)
    assert torch.equal(result.loss, clean.loss)
    assert torch.equal(result.grad, clean.grad)
    assert not result.grad[out].any()
    assert torch.equal(
        each_way.backward(dirty_upstream, dirty, labels, margin=margin).grad,
        each_way.backward(upstream, logits, labels, margin=margin).grad,
    )


@pytest.mark.parametrize("labels", [[IGNORE_INDEX] * 5, [IGNORE_INDEX, 3, IGNORE_INDEX], [4]])
@pytest.mark.parametrize("value", [1.0, torch.nan])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_no_pair_is_zero(each_way: Kernels, labels: list[int], value: float, gradient: str) -> None:
    logits = torch.full((len(labels), 6), value)
    ids = torch.tensor(labels)
    for reduction in REDUCTIONS:
        loss, stats, grad, _ = each_way.forward(logits, ids, gradient=gradient, reduction=reduction)
        assert not loss.any()
        assert not stats.any()
        assert grad is None or not grad.any()
    assert not each_way.backward(torch.ones(len(labels)), logits, ids, gradient=gradient).grad.any()


# ---- extreme logits ----


def _evaluate(logits: Tensor, labels: Tensor, margin: float = 2.0) -> truth.Truth:
    """The truth, with a margin near the given one that no pair is close to."""
    result = truth.evaluate(logits.double().numpy(), labels.numpy(), margin)
    inside = result.divergence[result.dissimilar & np.isfinite(result.divergence)]
    return result.with_margin(truth.margin_in_a_gap(inside, margin))


def _random(rows: int, columns: int, dtype: torch.dtype, spread: float = 1.4) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return spread * torch.randn(rows, columns, dtype=dtype, generator=generator)


# Rows that differ by `spread` differ by that part of P, which float32 holds to 6e-8: 6e-8 / spread
# is what a stored P allows, less what the sums average out.
@pytest.mark.parametrize(("spread", "error"), [(1e-4, 2e-4), (1e-2, 3e-6), (30.0, 3e-6)])
def test_nearly_uniform_and_confident_rows(each_way: Kernels, spread: float, error: float) -> None:
    logits, labels = _random(70, 34, torch.float32, spread), torch.zeros(70, dtype=torch.int64)
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0)
    check(each_way, logits, labels, expected, tolerance=Tolerance(error, error))


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_finite_logits(each_way: Kernels, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.choice([-1e4, 0.0, 1e4], (70, 10))).to(dtype)
    labels = torch.from_numpy(rng.integers(0, 4, 70))
    expected = _evaluate(logits, labels)
    assert expected.ordered.max() >= 1e4
    assert 0 < expected.active.sum() < expected.dissimilar.sum()
    check(each_way, logits, labels, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 3])
def test_a_class_masked_in_every_row(each_way: Kernels, classes: int, dtype: torch.dtype) -> None:
    logits, labels = _random(70, 34, dtype), torch.arange(70) % classes
    logits[:, [3, 20]] = -torch.inf
    expected = _evaluate(logits, labels)
    assert classes == 1 or 0 < expected.active.sum() < expected.dissimilar.sum()
    check(each_way, logits, labels, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_class_masked_in_some_rows_of_dissimilar_pairs(
    each_way: Kernels, dtype: torch.dtype
) -> None:
    """KL is infinite in one direction: that adds nothing, and takes nothing from the others."""
    logits, labels = _random(70, 34, dtype), torch.arange(70)
    logits[10:20, 5] = -torch.inf
    logits[40:50, 6] = -torch.inf
    expected = _evaluate(logits, labels)
    assert np.isinf(expected.divergence).any()
    assert expected.active[10:20].any()
    assert expected.active[:, 10:20].any()
    check(each_way, logits, labels, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_class_masked_in_one_row_of_a_similar_pair(each_way: Kernels, dtype: torch.dtype) -> None:
    """An infinite loss, NaN gradients for the two rows, and nothing in the others."""
    logits, labels = _random(20, 10, dtype), torch.arange(20) // 2
    logits[6, 4] = -torch.inf
    pair, others = [6, 7], [row for row in range(20) if row not in (6, 7)]
    expected = _evaluate(logits, labels)

    rows = each_way.forward(logits, labels, margin=expected.margin, reduction="none").loss
    assert rows[pair].isposinf().all()
    assert_close(rows[others], expected.loss("none")[others], TOLERANCES[dtype].loss)
    for reduction in ("mean", "sum"):
        options = {"margin": expected.margin, "reduction": reduction}
        loss, stats, grad, _ = each_way.forward(logits, labels, **options)
        assert loss.isposinf()
        assert stats[3].isposinf()
        assert stats[4].isfinite()
        assert grad[pair].isnan().all()
        exact = expected.grad("both", reduction)[others]
        assert_close(grad[others], exact, TOLERANCES[dtype].grad)
        second = each_way.forward(logits, labels, gradient="second", **options).grad
        assert_close(second, expected.grad("second", reduction), TOLERANCES[dtype].grad)
    grad = each_way.backward(torch.rand(20), logits, labels, margin=expected.margin).grad
    assert grad[pair].isnan().all()
    assert grad[others].isfinite().all()


@pytest.mark.parametrize("row", [[torch.nan, 0, 1], [torch.inf, 0, 1], [-torch.inf] * 3])
@pytest.mark.parametrize("classes", [1, 70])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_nan_is_not_hidden(
    each_way: Kernels, row: list[float], classes: int, gradient: str
) -> None:
    logits, labels = _random(70, 3, torch.float32), torch.arange(70) % classes
    logits[66] = torch.tensor(row)
    labels[5] = IGNORE_INDEX
    valid = labels != IGNORE_INDEX
    for reduction in REDUCTIONS:
        loss, _, grad, _ = each_way.forward(logits, labels, reduction=reduction, gradient=gradient)
        assert (loss[valid] if reduction == "none" else loss).isnan().all()
        if grad is not None:
            assert grad[valid].isnan().all()
            assert not grad[~valid].any()
    grad = each_way.backward(torch.ones(70), logits, labels, gradient=gradient).grad
    assert grad[valid].isnan().all()
    assert not grad[~valid].any()
