"""That the truth is true: against loops of plain arithmetic, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests import truth

LABELS = np.array([4, -1, 4, -100, 4, 9])
UPSTREAM = np.array([0.5, -2.0, 0.0, 3.0, 1.5, -0.25])


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((6, 4))


def kl(z: np.ndarray, w: np.ndarray) -> float:
    p = [math.exp(x) / sum(math.exp(y) for y in z) for x in z]
    q = [math.exp(x) / sum(math.exp(y) for y in w) for x in w]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_loss_and_stats_equal_loops_over_the_definition(logits: np.ndarray) -> None:
    margin, rows = 1.0, np.zeros(6)
    similar, dissimilar, active, pairs = 0.0, 0.0, 0, {True: 0, False: 0}
    for i in range(6):
        for j in range(i + 1, 6):
            if -100 in (LABELS[i], LABELS[j]):
                continue
            equal = bool(LABELS[i] == LABELS[j])
            pairs[equal] += 1
            both = [kl(logits[i], logits[j]), kl(logits[j], logits[i])]
            terms = both if equal else [max(margin - d, 0.0) for d in both]
            rows[[i, j]] += sum(terms)
            similar += sum(terms) * equal
            dissimilar += sum(terms) * (not equal)
            active += sum(t > 0 for t in terms) * (not equal)
    assert 0 < active < 2 * pairs[False]

    result = truth.evaluate(logits, LABELS, margin)
    np.testing.assert_allclose(result.loss("none"), rows, rtol=1e-13)
    np.testing.assert_allclose(result.loss("sum"), similar + dissimilar, rtol=1e-13)
    np.testing.assert_allclose(result.loss("mean"), (similar + dissimilar) / 10, rtol=1e-13)
    fraction = active / (2 * pairs[False])
    stats = [pairs[True], pairs[False], fraction, similar / 10, dissimilar / 10]
    np.testing.assert_allclose(result.stats("mean"), stats, rtol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradient_equals_finite_differences(logits: np.ndarray, reduction: str) -> None:
    upstream = UPSTREAM if reduction == "none" else -1.7
    step = 1e-6

    def loss(z: np.ndarray) -> float:
        return float(np.sum(upstream * truth.evaluate(z, LABELS, 1.0).loss(reduction)))

    expected = np.zeros_like(logits)
    for at in np.ndindex(logits.shape):
        moved = [logits.copy() for _ in range(2)]
        moved[0][at] += step
        moved[1][at] -= step
        expected[at] = (loss(moved[0]) - loss(moved[1])) / (2 * step)
    actual = truth.evaluate(logits, LABELS, 1.0).grad("both", reduction, upstream)
    np.testing.assert_allclose(actual, expected, atol=1e-8)


def test_second_gradient_equals_finite_differences_of_the_second_argument(
    logits: np.ndarray,
) -> None:
    fixed, step = truth.evaluate(logits, LABELS, 1.0), 1e-6
    p = np.exp(fixed.log_p)
    sign = fixed.similar.astype(float) - fixed.active

    def loss(z: np.ndarray) -> float:
        """Of D_ij with P_i held fixed, for the pairs that count."""
        log_q = z - np.log(np.exp(z).sum(1, keepdims=True))
        return float((sign * ((p * fixed.log_p).sum(1)[:, None] - p @ log_q.T)).sum())

    expected = np.zeros_like(logits)
    for at in np.ndindex(logits.shape):
        moved = [logits.copy() for _ in range(2)]
        moved[0][at] += step
        moved[1][at] -= step
        expected[at] = (loss(moved[0]) - loss(moved[1])) / (2 * step)
    np.testing.assert_allclose(fixed.grad("second", "sum"), expected, atol=1e-8)


def test_gradient_with_masked_classes_equals_a_loop_over_pairs(logits: np.ndarray) -> None:
    logits[[0, 1, 2, 4], 0] = -np.inf  # the similar rows 0, 2 and 4 alike, 1 too, but not 5
    labels = np.array([4, -1, 4, -100, 4, 9])
    result = truth.evaluate(logits, labels, 1.0)
    assert np.isinf(result.divergence[5, 0])
    p, log_p = np.exp(result.log_p), result.log_p
    expected = np.zeros_like(logits)
    for i, j in zip(*np.nonzero(result.similar | result.active), strict=True):
        weight = (1 if result.similar[i, j] else -1) * (UPSTREAM[i] + UPSTREAM[j])
        for k in range(4):
            if p[i, k] > 0:
                ratio = log_p[i, k] - log_p[j, k]
                expected[i, k] += weight * p[i, k] * (ratio - result.divergence[i, j])
            expected[j, k] += weight * (p[j, k] - p[i, k])
    np.testing.assert_allclose(result.grad("both", "none", UPSTREAM), expected, atol=1e-13)


def test_gradient_of_an_infinite_similar_pair(logits: np.ndarray) -> None:
    logits[0, 0] = -np.inf
    grad = truth.evaluate(logits, np.zeros(6), 1.0).grad("both", "mean")
    assert np.isfinite(grad[0]).all()
    assert np.isnan(grad[1:]).all()


def test_divergence_with_masked_classes() -> None:
    p = np.array([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 1.0, 0.0]])
    with np.errstate(divide="ignore"):
        divergence = truth.pairwise_kl(np.log(p))
    assert divergence[0, 1] == pytest.approx(0.5 * math.log(2))
    assert divergence[1, 0] == divergence[0, 2] == divergence[1, 2] == np.inf
    assert divergence[2, 0] == divergence[2, 1] == pytest.approx(math.log(2))
    assert (np.diag(divergence) == 0).all()


@pytest.mark.parametrize("near", [0.0, 0.7, 5.0])
def test_margin_in_a_gap(near: float) -> None:
    divergence = np.random.default_rng(0).random(20_000)
    margin = truth.margin_in_a_gap(divergence, near)
    assert np.abs(divergence - margin).min() >= 1.9e-5
    assert abs(margin - near) < 0.05
