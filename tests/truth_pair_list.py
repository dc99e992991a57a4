"""The loss over a list of pairs in float64 numpy: truth.py's pairs, as often as they are listed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests import truth
from tests.truth import Floats


@dataclass(frozen=True)
class PairListTruth:
    kinds: tuple[truth.Truth, truth.Truth]  # all pairs similar, and all dissimilar
    counts: tuple[Floats, Floats]  # (N, N): how often an ordered pair is listed
    weights: tuple[Floats, Floats]  # (N, N): the sums of their weights
    kind_weights: tuple[float, float]
    balance: bool

    @property
    def divergence(self) -> Floats:
        """Of the dissimilar pairs."""
        return self.kinds[1].divergence[self.kinds[1].dissimilar]

    def with_margin(self, margin: float) -> PairListTruth:
        kinds = tuple(kind.with_margin(margin) for kind in self.kinds)
        return PairListTruth(**{**self.__dict__, "kinds": kinds})

    def coefficients(self, reduction: str) -> list[Floats]:
        pairs = [counts.sum() / 2 for counts in self.counts]
        factors = np.array(self.kind_weights)
        if reduction == "mean":
            factors = factors / max(sum(pairs), 1)
        if self.balance:
            factors = factors * sum(pairs) / (2 * np.maximum(pairs, 0.5))
        return [factor * weight for factor, weight in zip(factors, self.weights, strict=True)]

    def terms(self, reduction: str) -> list[Floats]:
        of_kind = zip(self.coefficients(reduction), self.kinds, strict=True)
        return [np.where(c != 0, c * kind.ordered, 0.0) for c, kind in of_kind]

    def loss(self, reduction: str) -> Floats:
        total = sum(self.terms(reduction))
        return total.sum(0) + total.sum(1) if reduction == "none" else total.sum()

    def stats(self, reduction: str) -> Floats:
        similar, dissimilar = (counts.sum() for counts in self.counts)
        active = self.counts[1][self.kinds[1].active].sum()
        parts = [terms.sum() for terms in self.terms(reduction)]
        return np.array([similar / 2, dissimilar / 2, active / max(dissimilar, 1), *parts])

    def grad(self, gradient: str, reduction: str, upstream: Floats | float = 1.0) -> Floats:
        factor = np.asarray(upstream)
        if reduction == "none":
            factor = factor[:, None] + factor[None, :]
        coefficients = self.coefficients(reduction)
        return sum(
            kind.grad(gradient, "sum", factor * c)
            for kind, c in zip(self.kinds, coefficients, strict=True)
        )


def evaluate(
    logits: NDArray,
    pairs: NDArray,
    similar: NDArray,
    *,
    margin: float = 2.0,
    pair_weights: NDArray | None = None,
    similar_weight: float = 1.0,
    dissimilar_weight: float = 1.0,
    balance: str | None = None,
) -> PairListTruth:
    rows = len(logits)
    counts, weights = np.zeros((2, 2, rows, rows))
    for e, (i, j) in enumerate(pairs):
        if i != j:
            for at in ((i, j), (j, i)):
                kind = int(not similar[e])
                counts[kind][at] += 1
                weights[kind][at] += 1.0 if pair_weights is None else pair_weights[e]
    listed = counts.sum((0, 1)) > 0
    z = np.where(listed[:, None], np.asarray(logits, np.float64), 0.0)
    shifted = z - z.max(1, keepdims=True, initial=-np.inf)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    divergence = truth.pairwise_kl(log_p)
    nowhere = np.zeros((rows, rows), dtype=bool)
    kinds = (
        truth.Truth(log_p, divergence, counts[0] > 0, nowhere, margin),
        truth.Truth(log_p, divergence, nowhere, counts[1] > 0, margin),
    )
    return PairListTruth(
        kinds,
        tuple(counts),
        tuple(weights),
        (similar_weight, dissimilar_weight),
        balance is not None,
    )
