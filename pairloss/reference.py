"""The loss in plain PyTorch, written from the definition: slow, O(N M K) memory, easy to check.

Nothing here shares algebra with the fused kernels. It is differentiable to any order, and it is
what ``impl="reference"`` runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pairloss._arguments import (
    Inputs,
    Options,
    PairListInputs,
    PairStats,
    check_inputs,
    check_options,
    check_pair_list,
)

__all__ = [
    "pair_kl_hinge_loss",
    "pair_kl_hinge_loss_from_pairs",
    "pair_kl_hinge_loss_from_similarity",
]


def pair_kl_hinge_loss(
    logits: Tensor,
    labels: Tensor,
    ref_logits: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 2.0,
    gradient: str = "both",
    reduction: str = "mean",
    ignore_index: int = -100,
    level_weights: Sequence[float] | Tensor | None = None,
    similar_weight: float = 1.0,
    dissimilar_weight: float = 1.0,
    balance: str | None = None,
    precision: str = "fp32",
    sample_weights: Tensor | None = None,
    ref_sample_weights: Tensor | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, PairStats]:
    """As :func:`pairloss.pair_kl_hinge_loss`, from Eqs. 2-4 of the paper."""
    options = check_options(
        margin,
        gradient,
        reduction,
        ignore_index,
        similar_weight,
        dissimilar_weight,
        balance,
        precision,
    )
    inputs = check_inputs(
        logits,
        labels,
        ref_logits,
        ref_labels,
        sample_weights,
        ref_sample_weights,
        level_weights,
    )
    return evaluate(inputs, options, return_stats)


def pair_kl_hinge_loss_from_similarity(
    logits: Tensor,
    similarity: Tensor,
    *,
    margin: float = 2.0,
    gradient: str = "both",
    reduction: str = "mean",
    similar_weight: float = 1.0,
    dissimilar_weight: float = 1.0,
    balance: str | None = None,
    precision: str = "fp32",
    sample_weights: Tensor | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, PairStats]:
    """As :func:`pairloss.pair_kl_hinge_loss_from_similarity`."""
    options = check_options(
        margin, gradient, reduction, -100, similar_weight, dissimilar_weight, balance, precision
    )
    inputs = check_inputs(logits, similarity=similarity, sample_weights=sample_weights)
    return evaluate(inputs, options, return_stats)


def evaluate(
    inputs: Inputs, options: Options, return_stats: bool
) -> Tensor | tuple[Tensor, PairStats]:
    """The loss of arguments that have been checked."""
    z = _accumulated(inputs.logits)
    # Which ordered pairs take part: (G, N, M), M = N without a reference set.
    similar, dissimilar = _relations(inputs, options.ignore_index)
    valid = similar | dissimilar
    ref_logits = inputs.ref_logits
    within = ref_logits is None
    # Rows that take no part must not reach the result, not even as 0 * NaN in the backward.
    in_rows = valid.any(2).any(0)
    if ref_logits is None:
        z = torch.where((in_rows | valid.any(1).any(0))[:, None], z, 0.0)
        others = z
    else:
        z = torch.where(in_rows[:, None], z, 0.0)
        others = torch.where(valid.any(1).any(0)[:, None], _accumulated(ref_logits), 0.0)

    second_only = options.gradient == "second"
    linear = similar.any(0)
    divergences = [_pairwise_kl(z, others, linear, second_only)]
    if not within:
        divergences.append(_pairwise_kl(others, z, linear.T, second_only).T)
    weights = _pair_weights(inputs, z, others)

    zero = z.new_zeros(())
    similar_terms = zero.expand(valid.shape)
    dissimilar_terms = zero.expand(valid.shape)
    active = dissimilar.new_zeros(valid.shape, dtype=torch.int64)
    for divergence in divergences:
        # Eq. 3. ``margin - KL > 0`` is strict, as in the paper's max{}; the comparison is written
        # so that NaN stays NaN instead of becoming an inactive pair.
        hinge = options.margin - divergence
        is_active = dissimilar & ~(hinge <= 0)
        similar_terms = similar_terms + torch.where(similar, divergence * weights, zero)
        dissimilar_terms = dissimilar_terms + torch.where(is_active, hinge * weights, zero)
        active = active + is_active

    # Every unordered pair of the batch stands twice in its matrices, once for each direction;
    # those with a reference set stand once, and have both directions added up.
    twice = 2 if within else 1
    similar_pairs = similar.sum((1, 2)).double() / twice
    dissimilar_pairs = dissimilar.sum((1, 2)).double() / twice
    similar_scale, dissimilar_scale = (
        scale.to(z.dtype)[:, None, None]
        for scale in _scales(inputs, options, similar_pairs, dissimilar_pairs)
    )
    similar_terms = similar_terms * similar_scale
    dissimilar_terms = dissimilar_terms * dissimilar_scale
    terms = (similar_terms + dissimilar_terms).sum(0)
    # The connected zero keeps empty batches differentiable.
    connected = (z.sum() + others.sum()) * 0.0 if terms.numel() == 0 else zero
    if options.reduction == "none":
        # Eq. 2 for each row: loss(P, Q) + loss(Q, P), summed over the row's partners.
        loss = (terms.sum(1) + terms.sum(0) if within else terms.sum(1)) + connected
    else:
        loss = terms.sum() + connected
    if not return_stats:
        return loss

    with torch.no_grad():
        directions = 2 * dissimilar_pairs
        per_level = torch.stack(
            [
                similar_pairs,
                dissimilar_pairs,
                active.sum((1, 2)) / directions.clamp(min=1),
                similar_terms.sum((1, 2)).double(),
                dissimilar_terms.sum((1, 2)).double(),
            ]
        )
    return loss, PairStats.of(per_level, levels=inputs.has_levels)


def _accumulated(logits: Tensor) -> Tensor:
    return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _relations(inputs: Inputs, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which ordered pairs (i, j) are similar, and which dissimilar: bool, (G, N, M)."""
    if inputs.similarity is not None:
        similar, dissimilar = inputs.similarity[None] > 0, inputs.similarity[None] < 0
    else:
        rows = inputs.level_labels
        columns = rows if inputs.ref_labels is None else inputs.level_ref_labels
        equal = rows.T[:, :, None] == columns.T[:, None, :]
        valid = (rows != ignore_index).T[:, :, None] & (columns != ignore_index).T[:, None, :]
        similar, dissimilar = valid & equal, valid & ~equal
    if inputs.ref_logits is None:
        itself = torch.eye(similar.shape[1], dtype=torch.bool, device=similar.device)
        similar, dissimilar = similar & ~itself, dissimilar & ~itself
    return similar, dissimilar


def _pair_weights(inputs: Inputs, z: Tensor, others: Tensor) -> Tensor:
    """w_i w_j of every pair, from the weights of the samples."""
    ones = z.new_ones(())
    of_rows = ones.expand(len(z)) if inputs.sample_weights is None else inputs.sample_weights
    if inputs.ref_logits is None:
        of_columns = of_rows
    elif inputs.ref_sample_weights is None:
        of_columns = ones.expand(len(others))
    else:
        of_columns = inputs.ref_sample_weights
    return of_rows.to(z.dtype)[:, None] * of_columns.to(z.dtype)[None, :]


def _scales(
    inputs: Inputs, options: Options, similar_pairs: Tensor, dissimilar_pairs: Tensor
) -> tuple[Tensor, Tensor]:
    """What the terms of similar and of dissimilar pairs are multiplied by: (G,) each."""
    pairs = similar_pairs + dissimilar_pairs
    scale = 1.0 / pairs.clamp(min=0.5) if options.reduction == "mean" else torch.ones_like(pairs)
    if inputs.level_weights is not None:
        scale = scale * inputs.level_weights.to(scale)
    similar_scale = scale * options.similar_weight
    dissimilar_scale = scale * options.dissimilar_weight
    if options.balance:  # each kind weighs as much as half of all pairs
        similar_scale = similar_scale * pairs / (2 * similar_pairs.clamp(min=0.5))
        dissimilar_scale = dissimilar_scale * pairs / (2 * dissimilar_pairs.clamp(min=0.5))
    return similar_scale, dissimilar_scale


def _pairwise_kl(z: Tensor, others: Tensor, similar: Tensor, second_only: bool) -> Tensor:
    """KL(P_i || Q_j) of all ordered pairs, (N, M), in nats (Eq. 4), with 0 log 0 = 0."""
    log_p = torch.log_softmax(z, dim=1)
    log_q = log_p if others is z else torch.log_softmax(others, dim=1)
    if second_only:  # Hsu & Kira: the first argument of KL is a constant
        log_p = log_p.detach()
    p = log_p.exp()
    # Where P_ik = 0 the term is 0 whatever Q is, also when it reads 0 * inf. Both sides of each
    # where() are made finite, since its backward multiplies the side not taken by 0.
    support = p > 0
    p = torch.where(support, p, 0.0)[:, None, :]
    log_p = torch.where(support, log_p, 0.0)[:, None, :]
    # P_ik > 0 = Q_jk: KL is infinite. For a similar pair so is its gradient; a dissimilar pair is
    # beyond any margin, a constant.
    unreachable = support[:, None, :] & (log_q == -torch.inf)[None, :, :]
    constant = unreachable & ~similar[:, :, None]
    log_q = torch.where(support[:, None, :] & ~constant, log_q[None, :, :], 0.0)
    return (p * (log_p - log_q)).sum(2).masked_fill(constant.any(2), torch.inf)


# ---- Lists of pairs ------------------------------------------------------------------------------


def pair_kl_hinge_loss_from_pairs(
    logits: Tensor,
    pairs: Tensor,
    similar: Tensor,
    *,
    margin: float = 2.0,
    gradient: str = "both",
    reduction: str = "mean",
    similar_weight: float = 1.0,
    dissimilar_weight: float = 1.0,
    balance: str | None = None,
    pair_weights: Tensor | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, PairStats]:
    """As :func:`pairloss.pair_kl_hinge_loss_from_pairs`; O(E K) memory."""
    options = check_options(
        margin, gradient, reduction, -100, similar_weight, dissimilar_weight, balance
    )
    inputs = check_pair_list(logits, pairs, similar, pair_weights)
    return evaluate_pairs(inputs, options, return_stats)


def evaluate_pairs(
    inputs: PairListInputs, options: Options, return_stats: bool
) -> Tensor | tuple[Tensor, PairStats]:
    """The loss of arguments that have been checked."""
    z, pairs = _accumulated(inputs.logits), inputs.pairs
    counts = pairs[:, 0] != pairs[:, 1]  # a row with itself is no pair
    similar, dissimilar = counts & inputs.similar, counts & ~inputs.similar
    # A pair that does not count must not reach the result, not even as 0 * NaN.
    first, second = (torch.where(counts[:, None], z[pairs[:, side]], 0.0) for side in (0, 1))
    weights = z.new_ones(()) if inputs.pair_weights is None else inputs.pair_weights
    similar_pairs, dissimilar_pairs = similar.sum()[None].double(), dissimilar.sum()[None].double()
    similar_scale, dissimilar_scale = (
        scale.to(z.dtype) for scale in _scales(Inputs(z), options, similar_pairs, dissimilar_pairs)
    )

    second_only = options.gradient == "second"
    zero = z.new_zeros(())
    similar_terms = dissimilar_terms = zero.expand(len(pairs))
    active = dissimilar.new_zeros(len(pairs), dtype=torch.int64)
    for one, other in ((first, second), (second, first)):
        # Eqs. 3 and 4, as in evaluate().
        divergence = _rowwise_kl(one, other, similar, second_only)
        hinge = options.margin - divergence
        is_active = dissimilar & ~(hinge <= 0)
        similar_terms = similar_terms + torch.where(similar, divergence * weights, zero)
        dissimilar_terms = dissimilar_terms + torch.where(is_active, hinge * weights, zero)
        active = active + is_active
    similar_terms = similar_terms * similar_scale
    dissimilar_terms = dissimilar_terms * dissimilar_scale
    terms = similar_terms + dissimilar_terms
    if options.reduction == "none":
        loss = z.new_zeros(len(z)).index_add(0, pairs.flatten(), terms.repeat_interleave(2))
    else:
        loss = terms.sum()
    if not return_stats:
        return loss

    with torch.no_grad():
        stats = [
            similar_pairs,
            dissimilar_pairs,
            active.sum()[None] / (2 * dissimilar_pairs).clamp(min=1),
            similar_terms.sum()[None].double(),
            dissimilar_terms.sum()[None].double(),
        ]
    return loss, PairStats.of(torch.stack(stats), levels=False)


def _rowwise_kl(z: Tensor, others: Tensor, similar: Tensor, second_only: bool) -> Tensor:
    """KL(P_e || Q_e) of rows side by side, (E,): one column of _pairwise_kl for each."""
    kl = torch.vmap(
        lambda p, q, s: _pairwise_kl(p[None], q[None], s[None, None], second_only)[0, 0]
    )
    result: Tensor = kl(z, others, similar) if len(z) else z.sum(1)
    return result
