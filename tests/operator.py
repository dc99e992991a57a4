"""The arguments of ``torch.ops.pairloss.pair_kl_hinge`` and its backward, past Python's checks."""

from __future__ import annotations

from torch import Tensor

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
GRADIENTS = {"both": 0, "second": 1}


def arguments(
    logits: Tensor,
    labels: Tensor | None = None,
    *,
    similarity: Tensor | None = None,
    ref_logits: Tensor | None = None,
    ref_labels: Tensor | None = None,
    sample_weights: Tensor | None = None,
    ref_sample_weights: Tensor | None = None,
    level_weights: Tensor | None = None,
    margin: float = 2.0,
    gradient: int = 0,
    reduction: int = 1,
    ignore_index: int = -100,
    similar_weight: float = 1.0,
    dissimilar_weight: float = 1.0,
    balance: bool = False,
    precision: int = 0,
    with_grad: bool = True,
    with_ref_grad: bool = False,
) -> tuple[object, ...]:
    """In the order of the schema."""
    return (
        logits,
        labels,
        similarity,
        ref_logits,
        ref_labels,
        sample_weights,
        ref_sample_weights,
        level_weights,
        margin,
        gradient,
        reduction,
        ignore_index,
        similar_weight,
        dissimilar_weight,
        balance,
        precision,
        with_grad,
        with_ref_grad,
    )
