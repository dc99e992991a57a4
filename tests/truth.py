"""The loss, its statistics and its gradient in float64 numpy, from the definition.

No closed form for classes, no automatic differentiation. With P = softmax(z), L = log P and
D_ij = sum_k P_ik (L_ik - L_jk), the derivatives of each pair are

    dD_ij/dz_i = P_i * (L_i - L_j - D_ij)        dD_ij/dz_j = P_j - P_i

and the gradient is their weighted sum. test_truth.py holds all of it against finite differences
and plain loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """Matrices are (N, N), over ordered pairs."""

    log_p: Floats  # (N, K)
    divergence: Floats
    similar: Bools
    dissimilar: Bools
    margin: float

    @cached_property
    def active(self) -> Bools:
        return self.dissimilar & (self.divergence < self.margin)

    @cached_property
    def ordered(self) -> Floats:
        """Eq. 3 of every valid pair, 0 elsewhere."""
        hinge = np.where(self.active, self.margin - self.divergence, 0.0)
        return np.where(self.similar, self.divergence, hinge)

    def with_margin(self, margin: float) -> Truth:
        return Truth(self.log_p, self.divergence, self.similar, self.dissimilar, margin)

    def scale(self, reduction: str) -> float:
        pairs = (self.similar.sum() + self.dissimilar.sum()) / 2
        return 1.0 / max(pairs, 1.0) if reduction == "mean" else 1.0

    def loss(self, reduction: str) -> Floats:
        if reduction == "none":
            return self.ordered.sum(1) + self.ordered.sum(0)
        return self.ordered.sum() * self.scale(reduction)

    def stats(self, reduction: str) -> Floats:
        """In the order of PairStats."""
        parts = [self.ordered[pairs].sum() for pairs in (self.similar, self.dissimilar)]
        return np.array(
            [
                self.similar.sum() / 2,
                self.dissimilar.sum() / 2,
                self.active.sum() / max(self.dissimilar.sum(), 1),
                *(self.scale(reduction) * part for part in parts),
            ]
        )

    def grad(self, gradient: str, reduction: str, upstream: Floats | float | None = None) -> Floats:
        """Of ``(upstream * loss).sum()``; ``upstream`` is a number, or (N,) for "none".

        For "sum" also (N, N): of the sum of that times ``ordered``.

        A similar pair with D_ij = inf has no derivative in z_i: NaN, with "both".
        """
        u = np.asarray(1.0 if upstream is None else upstream)
        if reduction == "none":  # a row's loss holds (i, j) and (j, i): each pair is in two of them
            u = np.broadcast_to(u, len(self.log_p))
            weight = u[:, None] + u[None, :]
        else:
            weight = u * self.scale(reduction)
        weight = np.where(self.similar, weight, np.where(self.active, -weight, 0.0))
        p = np.exp(self.log_p)
        grad = weight.sum(0)[:, None] * p - weight.T @ p
        if gradient == "second":
            return grad
        # Where L_j = -inf, either P_i = 0 or the pair has no weight, unless it is similar.
        finite = np.where(np.isfinite(self.log_p), self.log_p, 0.0)
        total = (weight * np.where(weight != 0, self.divergence, 0.0)).sum(1)
        grad += p * (weight.sum(1)[:, None] * finite - weight @ finite - total[:, None])
        grad[~np.isfinite(total)] = np.nan
        return grad


def evaluate(logits: NDArray, labels: NDArray, margin: float, ignore_index: int = -100) -> Truth:
    """Logits finite or -inf, with one finite at least in every valid row."""
    labels = np.asarray(labels)
    valid = labels != ignore_index
    z = np.where(valid[:, None], np.asarray(logits, np.float64), 0.0)
    shifted = z - z.max(1, keepdims=True, initial=-np.inf)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    divergence = pairwise_kl(log_p)
    pair = valid[:, None] & valid[None, :] & ~np.eye(len(z), dtype=bool)
    similar = pair & (labels[:, None] == labels[None, :])
    return Truth(log_p, divergence, similar, pair & ~similar, margin)


def pairwise_kl(log_p: Floats) -> Floats:
    """KL(P_i || P_j) for all i and j, row by row: (N, N) memory, never (N, N, K)."""
    rows = len(log_p)
    divergence = np.empty((rows, rows))
    for i, row in enumerate(log_p):
        on: Bools | slice = np.exp(row) > 0  # 0 log 0 = 0, also where L_j = -inf
        if np.all(on):
            on = slice(None)  # no copy
        divergence[i] = (row[on] - log_p[:, on]) @ np.exp(row[on])
    return divergence


def margin_in_a_gap(divergence: Floats, near: float) -> float:
    """The value nearest to ``near`` that no pair is close to: float32 cannot decide at the kink."""
    edges = np.sort(np.append(divergence, [0.0, divergence.max(initial=near) + 1.0]), axis=None)
    wide = np.diff(edges) > 4e-5
    low, high = edges[:-1][wide] + 2e-5, edges[1:][wide] - 2e-5
    candidates = np.clip(near, low, high)
    return float(candidates[np.argmin(np.abs(candidates - near))])
