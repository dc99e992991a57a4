"""The gradient's sums on tensor cores, in shapes where their tiles, panels, words and splits end in
the middle of something, and their accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import forms, truth
from tests.cuda_emulation.emulation import GRADIENTS, Kernels
from tests.cuda_emulation.test_forms import arguments, random_upstream
from tests.forms import Form
from tests.native_build import SANITIZE
from tests.tolerances import assert_close

TOLERANCE = 1e-6  # of the largest element; float32's own rounding is 6e-8


@pytest.fixture
def tensor(kernels: Kernels) -> Kernels:
    return Kernels(kernels.library, tiled=True, arithmetic="tensor")


def check(kernels: Kernels, form: Form, **options: Any) -> None:
    """All gradients of a form against the truth."""
    batch = forms.make(form)
    given = arguments(batch)
    with_ref_grad = form.ref_rows > 0
    for gradient in GRADIENTS:
        result = kernels.forward(**given, gradient=gradient, with_ref_grad=with_ref_grad, **options)
        exact = batch.truth.grads(gradient, "mean")
        assert_close(result.grad, exact[0], TOLERANCE, gradient)
        if with_ref_grad:
            assert_close(result.ref_grad, exact[1], TOLERANCE, f"{gradient}, reference")


# Odd on purpose. Blocks have 128 rows, tiles 64, warps 32; panels have up to 64 classes, in slices
# of 16 and tiles of 8; words have 32 columns.
SHAPES = [(2, 2), (63, 16), (65, 17), (96, 33), (128, 64), (129, 65), (161, 34), (200, 130)]
# Words of 32 columns that have marks.
WORDS = [[0], [7], [0, 7], [1, 3, 4, 8], [0, 2, 4, 6, 8]]
if SANITIZE:  # which are slow, and see no more in the others
    SHAPES, WORDS = SHAPES[6:7], WORDS[3:4]
not_of_memory = pytest.mark.skipif(SANITIZE, reason="slow, and touches no other memory")


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_equal_weights(tensor: Kernels, rows: int, columns: int, splits: int) -> None:
    check(tensor, Form(rows, columns, torch.float32, ignored="some"), product_splits=splits)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_any_weights(tensor: Kernels, rows: int, columns: int) -> None:
    form = Form(rows, columns, torch.float32, levels=2, weighted="level kind sample")
    check(tensor, form, product_splits=1)


@pytest.mark.parametrize("weighted", ["kind", "balance", "sample"])
def test_one_level_of_any_weights(tensor: Kernels, weighted: str) -> None:
    check(tensor, Form(70, 34, torch.float32, weighted=weighted), product_splits=1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_similarity(tensor: Kernels, symmetric: bool) -> None:
    form = Form(130, 34, torch.float32, similarity="int8", symmetric=symmetric)
    check(tensor, form, product_splits=1)


@pytest.mark.parametrize("weighted", ["", "sample ref"])
@pytest.mark.parametrize(("rows", "ref_rows", "columns"), [(33, 225, 34), (130, 1, 48)])
def test_reference_sets(
    tensor: Kernels, rows: int, ref_rows: int, columns: int, weighted: str
) -> None:
    form = Form(rows, columns, torch.float32, ref_rows=ref_rows, weighted=weighted)
    check(tensor, form, product_splits=2)


@pytest.mark.parametrize("chunk_rows", [64, 128])
def test_chunks_of_rows(tensor: Kernels, chunk_rows: int) -> None:
    """Of 64 rows: half of each block has none."""
    check(tensor, Form(200, 34, torch.float32), chunk_rows=chunk_rows, product_splits=1)


def test_upstream(tensor: Kernels) -> None:
    form = Form(130, 34, torch.float32)
    batch, upstream = forms.make(form), random_upstream(form.rows)
    result = tensor.backward(upstream, **arguments(batch), product_splits=1)
    exact = batch.truth.grads("both", "none", upstream.double().numpy())
    assert_close(result.grad, exact[0], TOLERANCE)


@not_of_memory
@pytest.mark.parametrize("weighted", ["", "sample"])
def test_same_bits_in_any_order(tensor: Kernels, weighted: str) -> None:
    given = arguments(forms.make(Form(130, 70, torch.float32, weighted=weighted)))
    first, *others = (tensor.forward(**given, product_splits=1, seed=seed) for seed in range(3))
    for other in others:
        assert torch.equal(other.grad, first.grad)


# ---- words without marks ------------------------------------------------------------------------


def clusters(labels: Tensor, columns: int, height: float = 20.0, classes: int = 1) -> Tensor:
    """Logits, high in some classes by label, so that dissimilar rows are far beyond the margin."""
    logits = 0.3 * torch.randn(len(labels), columns, generator=torch.Generator().manual_seed(0))
    high = torch.combinations(torch.arange(columns), classes)[labels]
    return logits.scatter_add(1, high, torch.full(high.shape, height))


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_words_without_marks_are_skipped(
    tensor: Kernels, words: list[int], splits: int, weighted: bool
) -> None:
    """Some rows of each of these words are one cluster; all others are alone."""
    labels = torch.arange(280)
    alike = [32 * word + row for word in words for row in (3, 17, 23)]
    labels[alike] = alike[0]
    logits = clusters(labels, 26, classes=2)
    given = {"labels": labels} | ({"sample_weights": torch.ones(280)} if weighted else {})
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0)
    assert not expected.active.any()
    for gradient in GRADIENTS:
        result = tensor.forward(logits, **given, gradient=gradient, product_splits=splits)
        assert_close(result.grad, expected.grad(gradient, "mean"), TOLERANCE, gradient)


# A block looks at 32 words together.
@not_of_memory
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("words", [[0, 31, 32, 95, 96], [97]])
def test_marks_in_few_of_many_words(tensor: Kernels, words: list[int], splits: int) -> None:
    """Rows of one cluster, of which a large reference set has a few."""
    labels, ref_labels = torch.zeros(70, dtype=torch.int64), torch.ones(3190, dtype=torch.int64)
    alike = torch.tensor([32 * word + row for word in words for row in (3, 17, 21)])
    ref_labels[alike] = 0
    logits, ref_logits = clusters(labels, 18), clusters(ref_labels, 18)
    log_p, log_q = logits.double().log_softmax(1), ref_logits[alike].double().log_softmax(1)
    p, q = log_p.exp(), log_q.exp()
    first = len(alike) * log_p - log_q.sum(0)
    second = len(alike) * p - q.sum(0)
    exact = {"both": p * (first - (p * first).sum(1, keepdim=True)) + second, "second": second}
    given = {"ref_logits": ref_logits, "ref_labels": ref_labels, "product_splits": splits}
    for gradient in GRADIENTS:
        result = tensor.forward(logits, labels, **given, gradient=gradient, reduction="sum")
        assert_close(result.grad, exact[gradient].numpy(), TOLERANCE, gradient)


@pytest.mark.parametrize(("i", "j"), [(3, 100), (100, 3), (129, 70), (70, 129)])
def test_marks_in_one_direction(tensor: Kernels, i: int, j: int) -> None:
    """(i, j) is a pair and (j, i) is none: row i has a mark in A alone, row j in B alone."""
    logits = torch.randn(130, 18, generator=torch.Generator().manual_seed(0))
    similarity = torch.zeros(130, 130, dtype=torch.int8)
    similarity[i, j] = 1
    p, log_p = logits.double().softmax(1), logits.double().log_softmax(1)
    first = log_p[i] - log_p[j]
    for gradient in GRADIENTS:
        exact = torch.zeros(130, 18, dtype=torch.float64)
        if gradient == "both":
            exact[i] = p[i] * (first - p[i] @ first)
        exact[j] = p[j] - p[i]
        result = tensor.forward(
            logits, similarity=similarity, gradient=gradient, reduction="sum", product_splits=1
        )
        assert_close(result.grad, exact.numpy(), TOLERANCE, gradient)


def test_no_marks_at_all(tensor: Kernels) -> None:
    labels = torch.arange(70)
    assert not tensor.forward(clusters(labels, 17, classes=2), labels).grad.any()


# ---- rows that are not bounded ------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[3], [70, 140], [0, 64, 128, 192]])
@pytest.mark.parametrize("weighted", [False, True])
def test_masked_rows_go_another_way(tensor: Kernels, rows: list[int], weighted: bool) -> None:
    """Their tiles are products_kernel's; tensor cores do the rest, and nothing is done twice."""
    labels = torch.arange(200) % 7
    logits = clusters(labels, 34, height=2.0)
    labels[rows] = 7 + torch.arange(len(rows))  # no similar pair is infinitely far apart
    logits[rows, 5] = -torch.inf
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0)
    assert expected.active[rows].any()
    given = {"sample_weights": torch.ones(200)} if weighted else {}
    for gradient in GRADIENTS:
        result = tensor.forward(logits, labels, **given, gradient=gradient, product_splits=2)
        assert_close(result.grad, expected.grad(gradient, "mean"), 1e-5, gradient)


# ---- accuracy -----------------------------------------------------------------------------------

PAIRS = {
    "all similar": torch.zeros(192, dtype=torch.int64),
    "mixed": torch.arange(192) % 10,
    "all dissimilar": torch.arange(192),
}


def frobenius(tensor: Kernels, logits: Tensor, labels: Tensor, **options: Any) -> float:
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0)
    # A pair within rounding of the margin would be an error of its own.
    near = expected.divergence[expected.dissimilar]
    margin = truth.margin_in_a_gap(near, 2.0) if near.size else 2.0
    exact = expected.with_margin(margin).grad("both", "mean")
    found = tensor.forward(logits, labels, margin=margin, **options).grad.double().numpy()
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@not_of_memory
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("scale", [0.001, 1.0, 100.0])
def test_float32_accuracy(tensor: Kernels, scale: float, pairs: str, weighted: bool) -> None:
    """Also where all rows are nearly uniform: the sums are relative to a reference row."""
    logits = scale * torch.randn(192, 34, generator=torch.Generator().manual_seed(1))
    given = {"sample_weights": torch.ones(192)} if weighted else {}
    error = frobenius(tensor, logits, PAIRS[pairs], product_splits=1, **given)
    print(f"scale {scale}, {pairs}: {error:.1e}")
    assert error < 2e-6


@not_of_memory
def test_long_sums_do_not_drift(tensor: Kernels) -> None:
    """An mma cuts off; over thousands of columns in one sum that would be an error of 1e-5."""
    columns, generator = 8192, torch.Generator().manual_seed(2)
    logits, ref_logits = (2 * torch.randn(n, 16, generator=generator) for n in (16, columns))
    labels = torch.zeros(16, dtype=torch.int64)
    result = tensor.forward(
        logits,
        labels,
        ref_logits=ref_logits,
        ref_labels=torch.zeros(columns, dtype=torch.int64),
        product_splits=1,
    )
    log_p, log_q = (z.double().log_softmax(1) for z in (logits, ref_logits))
    p, q = log_p.exp(), log_q.exp()
    first = log_p - log_q.mean(0)
    exact = (p * (first - (p * first).sum(1, keepdim=True)) + p - q.mean(0)) / 16
    assert (result.grad.double() - exact).norm() < 1e-6 * exact.norm()


@not_of_memory
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("height", [8.0, 20.0])
def test_converged_clusters(each_way: Kernels, height: float, gradient: str) -> None:
    """At 20, 1 - P is half of what float32 can tell from 0: only the other classes' elements of the
    gradient are accurate by themselves."""
    labels = torch.arange(120) % 4
    logits = clusters(labels, 17, height)
    exact = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0).grad(gradient, "mean")
    found = each_way.forward(logits, labels, gradient=gradient).grad.double().numpy()
    assert np.linalg.norm(found - exact) < 1e-6 * np.linalg.norm(exact)
