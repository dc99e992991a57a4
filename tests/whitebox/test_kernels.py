"""Whole kernels of every instruction set against the truth, at any number of workers."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

from tests import truth
from tests.tolerances import assert_close
from tests.whitebox.data import COMPUTED_IN, ELEMENTS, encode

# Odd on purpose. Tiles of 64, 128 and 256; panels one and a bit, and more than fit into a cache.
SIZES = ((2, 1), (17, 3), (65, 34), (131, 70), (300, 300), (530, 10))
WORKERS = ((1, "threads"), (2, "threads"), (4, "threads"), (3, "serial"), (3, "reversed"))
SCALE = 0.37


class Batch(NamedTuple):
    logits: np.ndarray
    element: str
    labels: np.ndarray
    margin: float
    truth: truth.Truth

    def value(self, whitebox: ModuleType, options: object, by_row: bool) -> tuple:
        return whitebox.value(self.logits, self.element, self.labels, options, by_row)

    def gradient(self, whitebox: ModuleType, options: object, weights: object) -> tuple:
        return whitebox.gradient(self.logits, self.element, self.labels, options, SCALE, weights)


def make(rows: int, columns: int, element: str, masked: bool = False) -> Batch:
    rng = np.random.default_rng([rows, columns])
    labels = rng.integers(-1, 5, rows) * 10**12
    labels[rng.random(rows) < 0.15] = -100
    values = rng.standard_normal((rows, columns)) * 1.4
    if masked:  # by class
        for label in (0, 10**12):
            values[labels == label, rng.integers(1, columns)] = -np.inf
    logits, exact = encode(values, element)
    result = truth.evaluate(exact, labels, 1.0)
    finite = result.divergence[result.dissimilar & np.isfinite(result.divergence)]
    margin = 1.0
    if columns > 1 and len(finite):
        margin = truth.margin_in_a_gap(finite, float(np.median(finite)))
    result = result.with_margin(margin)
    if rows > 2 and columns > 1:
        assert 0.2 < result.active.sum() / result.dissimilar.sum() < 0.8
    return Batch(logits, element, labels, margin, result)


def check(whitebox: ModuleType, isa: int, batch: Batch) -> None:
    expected, dtype = batch.truth, COMPUTED_IN[batch.element]
    # Sums of up to as many rows, by the truth, too.
    eps = float(np.finfo(dtype).eps) * max(1.0, len(batch.labels) / 1000)
    scale = len(batch.labels) if batch.logits.shape[1] == 1 else 1e-30
    parts = [expected.ordered[pairs].sum() for pairs in (expected.similar, expected.dissimilar)]
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(len(batch.labels)).astype(dtype)
    weights[::4] = 0

    first = {}
    for workers, how in WORKERS:
        results = {}
        for second_only in (False, True):
            options = whitebox.Options(isa, batch.margin, second_only, workers, how)
            for by_row in (False, True):
                sums, rows = batch.value(whitebox, options, by_row)
                results["value", by_row] = sums if rows is None else (*sums, rows)
            results["gradient", second_only] = batch.gradient(whitebox, options, None)
            results["weighted", second_only] = batch.gradient(whitebox, options, weights)[1]
        if not first:
            first = results
            continue
        for name, result in results.items():  # the same bits
            np.testing.assert_equal(result, first[name], f"{name}, {workers} workers, {how}")

    for by_row in (False, True):
        similar, dissimilar, active, *rows = first["value", by_row]
        assert active == expected.active.sum()
        assert_close([similar, dissimilar], parts, 100 * eps)
        if rows:
            assert_close(rows[0], expected.loss("none"), 100 * eps)
    for second_only in (False, True):
        kind = "second" if second_only else "both"
        sums, grad = first["gradient", second_only]
        assert sums[2] == expected.active.sum()
        assert_close(sums[:2], parts, 100 * eps)
        assert_close(grad, expected.grad(kind, "sum", SCALE), 200 * eps, kind, scale)
        wanted = SCALE * expected.grad(kind, "none", weights.astype(np.float64))
        assert_close(first["weighted", second_only], wanted, 200 * eps, f"{kind}, weighted", scale)


@pytest.mark.parametrize("element", ["float64", "float32"])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_kernels(whitebox: ModuleType, isa: int, rows: int, columns: int, element: str) -> None:
    check(whitebox, isa, make(rows, columns, element))


@cache
def make_clusters(rows: int, columns: int, element: str) -> Batch:
    """Classes that are clusters: one of everything, one beyond the margin, two inside.

    In an order in which like rows are neighbours most tiles are certain as a whole: of dissimilar
    pairs alone, or with similar ones where two classes meet; and with rows behind the last.
    """
    rng = np.random.default_rng([rows, columns])
    labels = rng.choice(4, rows, p=[0.03, 0.47, 0.2, 0.3])
    centres = rng.standard_normal((1, columns)) + np.zeros((4, 1))
    centres[1] += 6 * (np.arange(columns) == 1)
    values = centres[labels] + rng.standard_normal((rows, columns)) * 0.02
    values[labels == 0] += rng.standard_normal((np.count_nonzero(labels == 0), columns))
    labels[rng.random(rows) < 0.02] = -100
    logits, exact = encode(values, element)
    result = truth.evaluate(exact, labels, 1.0)
    margin = truth.margin_in_a_gap(result.divergence[result.dissimilar], 1.0)
    result = result.with_margin(margin)
    assert 0.1 < result.active.sum() / result.dissimilar.sum() < 0.9
    return Batch(logits, element, labels, margin, result)


@pytest.mark.parametrize("element", ["float64", "float32"])
@pytest.mark.parametrize(("rows", "columns"), [(1400, 34), (4200, 10)])
def test_kernels_with_certain_tiles(
    whitebox: ModuleType, isa: int, rows: int, columns: int, element: str
) -> None:
    """Tiles of 256 that are added whole; from 16 blocks of rows on, by bounds of their own."""
    batch = make_clusters(rows, columns, element)
    order = np.lexsort((batch.logits.argmax(1), batch.labels))
    order = order[batch.labels[order] >= 0]
    states = whitebox.find_tile_states(
        isa, batch.logits[order], element, batch.labels[order], batch.margin, 256
    )
    assert (states == 1).any()
    assert (states == -1).any()
    assert (states == 0).any()
    assert len(order) % 32 != 0
    assert (states[:, -1] == 1).any()
    check(whitebox, isa, batch)


@pytest.mark.parametrize("element", ["float64", "float32"])
def test_kernels_with_nothing_but_certain_tiles(
    whitebox: ModuleType, isa: int, element: str
) -> None:
    """Rows that no pair is added to by itself: what stands in their place is not a sum."""
    labels = np.repeat([3, 7], 512)
    logits, exact = encode(np.random.default_rng(3).standard_normal((1024, 10)) * 0.5, element)
    result = truth.evaluate(exact, labels, 3.0)
    assert result.divergence.max() < 3.0
    states = whitebox.find_tile_states(isa, logits, element, labels, 3.0, 256)
    assert (states == 1).all()
    check(whitebox, isa, Batch(logits, element, labels, 3.0, result))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize(("rows", "columns"), [(65, 34), (300, 5)])
def test_kernels_with_masked_classes(
    whitebox: ModuleType, isa: int, rows: int, columns: int, element: str
) -> None:
    batch = make(rows, columns, element, masked=True)
    assert np.isinf(batch.truth.divergence[batch.truth.dissimilar]).any()
    check(whitebox, isa, batch)


@pytest.mark.parametrize("element", ["float64", "float32"])
def test_kernels_see_nan(whitebox: ModuleType, isa: int, element: str) -> None:
    batch = make(300, 20, element)
    valid = batch.labels != -100
    batch.logits[np.flatnonzero(valid)[-1], 3] = np.nan
    for workers, how in WORKERS:
        options = whitebox.Options(isa, batch.margin, False, workers, how)
        sums, rows = batch.value(whitebox, options, True)
        assert np.isnan(sums[:2]).all()
        np.testing.assert_array_equal(np.isnan(rows), valid)
        sums, grad = batch.gradient(whitebox, options, None)
        assert np.isnan(sums[:2]).all()
        np.testing.assert_array_equal(np.isnan(grad), valid[:, None] | np.zeros(20, dtype=bool))
        assert (grad[~valid] == 0).all()
