"""Every form of the loss in float64 numpy: truth.py's pairs, chosen and weighed one by one.

A reference set is the second part of one concatenated batch of which only the cross pairs count.
Each ordered pair (a, b) of each level g then has a kind (similar, dissimilar, neither) and a
coefficient, and the loss is the sum of coefficient times Eq. 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests import truth
from tests.truth import Floats


@dataclass(frozen=True)
class FormTruth:
    """Matrices are (R, R), over ordered pairs of the batch and the reference set together."""

    rows: int  # of the batch: the first ones
    levels: tuple[truth.Truth, ...]
    level_weights: tuple[float, ...]
    row_weights: Floats  # (R,)
    similar_weight: float
    dissimilar_weight: float
    balance: bool

    @property
    def margin(self) -> float:
        return self.levels[0].margin

    def with_margin(self, margin: float) -> FormTruth:
        levels = tuple(level.with_margin(margin) for level in self.levels)
        return FormTruth(**{**self.__dict__, "levels": levels})

    @property
    def dissimilar_divergence(self) -> Floats:
        return np.concatenate([level.divergence[level.dissimilar] for level in self.levels])

    def coefficients(self, level: int, reduction: str) -> Floats:
        pairs = self.levels[level]
        similar, dissimilar = pairs.similar.sum() / 2, pairs.dissimilar.sum() / 2
        factor = self.level_weights[level]
        if reduction == "mean":
            factor /= max(similar + dissimilar, 0.5)
        of_similar, of_dissimilar = self.similar_weight, self.dissimilar_weight
        if self.balance:
            of_similar *= (similar + dissimilar) / (2 * max(similar, 0.5))
            of_dissimilar *= (similar + dissimilar) / (2 * max(dissimilar, 0.5))
        of_kind = np.where(pairs.similar, of_similar, of_dissimilar)
        return factor * of_kind * np.outer(self.row_weights, self.row_weights)

    def loss(self, reduction: str) -> Floats:
        total = np.zeros((len(self.row_weights),) * 2)
        for g, level in enumerate(self.levels):
            total += self.coefficients(g, reduction) * level.ordered
        if reduction == "none":
            return (total.sum(1) + total.sum(0))[: self.rows]
        return total.sum()

    def stats(self, reduction: str) -> Floats:
        """(5, G), in the order of PairStats."""
        columns = []
        for g, level in enumerate(self.levels):
            terms = self.coefficients(g, reduction) * level.ordered
            columns.append(
                [
                    level.similar.sum() / 2,
                    level.dissimilar.sum() / 2,
                    level.active.sum() / max(level.dissimilar.sum(), 1),
                    terms[level.similar].sum(),
                    terms[level.dissimilar].sum(),
                ]
            )
        return np.array(columns).T

    def grads(
        self, gradient: str, reduction: str, upstream: Floats | float = 1.0
    ) -> tuple[Floats, Floats]:
        """Of ``(upstream * loss).sum()``, in the logits and in those of the reference set."""
        if reduction == "none":  # pair (a, b) stands in the row of a and in that of b
            u = np.zeros(len(self.row_weights))
            u[: self.rows] = upstream
            factor: Floats | float = u[:, None] + u[None, :]
        else:
            factor = upstream
        grad = sum(
            level.grad(gradient, "sum", factor * self.coefficients(g, reduction))
            for g, level in enumerate(self.levels)
        )
        return grad[: self.rows], grad[self.rows :]


def evaluate(
    logits: NDArray,
    labels: NDArray | None = None,
    ref_logits: NDArray | None = None,
    ref_labels: NDArray | None = None,
    *,
    similarity: NDArray | None = None,
    margin: float = 2.0,
    ignore_index: int = -100,
    level_weights: tuple[float, ...] | None = None,
    similar_weight: float = 1.0,
    dissimilar_weight: float = 1.0,
    balance: str | None = None,
    sample_weights: NDArray | None = None,
    ref_sample_weights: NDArray | None = None,
) -> FormTruth:
    rows = len(logits)
    z = np.asarray(logits, np.float64)
    weights = np.ones(rows) if sample_weights is None else np.asarray(sample_weights, np.float64)
    counts = ~np.eye(rows, dtype=bool)
    if ref_logits is not None:
        z = np.concatenate([z, np.asarray(ref_logits, np.float64)])
        ones = np.ones(len(ref_logits))
        weights = np.append(weights, ones if ref_sample_weights is None else ref_sample_weights)
        labels = np.concatenate([labels, ref_labels])
        in_batch = np.arange(len(z)) < rows
        counts = in_batch[:, None] != in_batch[None, :]

    if similarity is not None:
        # In bool, False is dissimilar.
        signs = np.where(similarity, 1, -1) if similarity.dtype == bool else np.sign(similarity)
        kinds = [np.where(counts, signs, 0)]
    else:
        kinds = []
        labels = np.asarray(labels)
        for of_level in labels.T if labels.ndim == 2 else labels[None]:
            valid = of_level != ignore_index
            kind = np.where(of_level[:, None] == of_level[None, :], 1, -1)
            kinds.append(np.where(counts & valid[:, None] & valid[None, :], kind, 0))

    takes_part = sum(np.abs(kind).sum(0) + np.abs(kind).sum(1) for kind in kinds) > 0
    z = np.where(takes_part[:, None], z, 0.0)
    shifted = z - z.max(1, keepdims=True, initial=-np.inf)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    divergence = truth.pairwise_kl(log_p)
    return FormTruth(
        rows,
        tuple(truth.Truth(log_p, divergence, kind > 0, kind < 0, margin) for kind in kinds),
        level_weights or (1.0,) * len(kinds),
        weights,
        similar_weight,
        dissimilar_weight,
        balance is not None,
    )
