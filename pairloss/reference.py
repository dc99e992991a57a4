"""The loss in plain PyTorch, written from the definition: slow, O(N^2 K) memory, easy to check.

Nothing here shares algebra with the fused kernels. It is differentiable to any order, and it is
what ``impl="reference"`` runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pairloss._arguments import PairStats, check_arguments

__all__ = ["pair_kl_hinge_loss"]


def pair_kl_hinge_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = 2.0,
    gradient: str = "both",
    reduction: str = "mean",
    ignore_index: int = -100,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, PairStats]:
    """As :func:`pairloss.pair_kl_hinge_loss`, from Eqs. 2-4 of the paper."""
    labels = check_arguments(logits, labels, margin, gradient, reduction, ignore_index)
    return evaluate(logits, labels, margin, gradient, reduction, ignore_index, return_stats)


def evaluate(
    logits: Tensor,
    labels: Tensor,
    margin: float,
    gradient: str,
    reduction: str,
    ignore_index: int,
    return_stats: bool,
) -> Tensor | tuple[Tensor, PairStats]:
    """The loss of arguments that have been checked."""
    z = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    valid = labels != ignore_index
    # Rows that take no part, one without partners included, must not reach the result, not even as
    # 0 * NaN in the backward.
    z = torch.where((valid & (valid.sum() > 1))[:, None], z, 0.0)

    pair = valid[:, None] & valid[None, :]
    pair = pair & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    similar = pair & (labels[:, None] == labels[None, :])
    dissimilar = pair & ~similar
    divergence = _pairwise_kl(z, similar, second_only=gradient == "second")

    zero = divergence.new_zeros(())
    # Eq. 3. ``margin - KL > 0`` is strict, as in the paper's max{}; the comparison is written so
    # that NaN stays NaN instead of becoming an inactive pair.
    hinge = margin - divergence
    inactive = hinge <= 0
    similar_terms = torch.where(similar, divergence, zero)
    dissimilar_terms = torch.where(dissimilar & ~inactive, hinge, zero)

    # Eq. 2 for each row: loss(P, Q) + loss(Q, P), summed over the row's partners.
    ordered = similar_terms + dissimilar_terms
    rows = ordered.sum(1) + ordered.sum(0)
    # Each unordered pair stands in two rows. The connected zero keeps empty batches differentiable.
    pairs = torch.triu(pair, 1).sum()
    scale = 1.0 / pairs.clamp(min=1).to(z.dtype) if reduction == "mean" else zero + 1.0
    connected = z.sum() * 0.0 if z.numel() == 0 else zero
    loss = rows if reduction == "none" else ordered.sum() * scale + connected
    if not return_stats:
        return loss

    with torch.no_grad():
        active = (dissimilar & ~inactive).sum()
        stats = PairStats(
            similar_pairs=similar.sum().double() / 2,
            dissimilar_pairs=dissimilar.sum().double() / 2,
            active_fraction=active.double() / dissimilar.sum().clamp(min=1),
            similar_loss=(similar_terms.sum() * scale).double(),
            dissimilar_loss=(dissimilar_terms.sum() * scale).double(),
        )
    return loss, stats


def _pairwise_kl(z: Tensor, similar: Tensor, second_only: bool) -> Tensor:
    """KL(P_i || P_j) of all ordered pairs, (N, N), in nats (Eq. 4), with 0 log 0 = 0."""
    log_p = torch.log_softmax(z, dim=1)
    log_q = log_p
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
