"""The same loss as a user would write or find it without pairloss.

All take (logits, labels, margin) and, but for :func:`l2c`, give the value of
``pairloss.pair_kl_hinge_loss`` with its default arguments.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, float], Tensor]


def _mean(ordered_sum: Tensor, rows: int) -> Tensor:
    """Eq. 2 averaged over unordered pairs, from the sum over ordered ones."""
    return ordered_sum * (2 / (rows * (rows - 1)))


def _divergences(logits: Tensor) -> Tensor:
    """All KL(P_i || P_j), (N, N), as one matrix product: sum_k P_ik L_ik - P_i . L_j."""
    log_p = functional.log_softmax(logits, dim=1)
    p = log_p.exp()
    return (p * log_p).sum(1, keepdim=True) - p @ log_p.T


def eager(logits: Tensor, labels: Tensor, margin: float = 2.0) -> Tensor:
    """Well written PyTorch: one matrix product and a few passes over N x N tensors.

    A row's pair with itself is left in: its KL is 0, and so is the gradient of it.
    """
    divergence = _divergences(logits)
    similar = labels[:, None] == labels[None, :]
    terms = torch.where(similar, divergence, (margin - divergence).clamp(min=0))
    return _mean(terms.sum(), len(logits))


def compiled(mode: str | None = None) -> Loss:
    """:func:`eager` through torch.compile, for fixed shapes."""
    # It looks for CUDA on machines without a GPU, and warns.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    loss: Loss = torch.compile(eager, dynamic=False, fullgraph=True, mode=mode)
    return loss


def l2c(logits: Tensor, labels: Tensor, margin: float = 2.0) -> Tensor:
    """The form of Hsu & Kira's code (L2C: PairEnum, KLDiv, KCL), written anew from its idea.

    The probabilities are enumerated twice into (N^2, K) tensors, and each row of one is compared
    with the same row of the other. The mean is over all N^2 ordered pairs, a row's with itself
    included, and KL's first argument is a constant: ``pair_kl_hinge_loss(..., gradient="second")``
    times (N - 1) / (2 N). What differs: against log 0 they add 1e-7 to the probabilities, which
    changes the loss by 0.2 % where the logits are confident; here it is the least that helps.
    """
    rows = len(logits)
    p = functional.softmax(logits, dim=1) + torch.finfo(logits.dtype).tiny
    first = p.detach().repeat_interleave(rows, dim=0)
    second = p.repeat(rows, 1)
    similar = labels.repeat_interleave(rows) == labels.repeat(rows)
    divergence = (first * (first.log() - second.log())).sum(1)
    terms = torch.where(similar, divergence, (margin - divergence).clamp(min=0))
    return terms.mean()


def metric_learning() -> Loss:
    """pytorch-metric-learning's ContrastiveLoss with KL as its distance and a sum as its reducer.

    What differs: the package lists the pairs as four index vectors and gathers their distances, and
    it takes max(KL, 0) of similar pairs, which drops those that rounding made negative.
    """
    from pytorch_metric_learning.distances import BaseDistance
    from pytorch_metric_learning.losses import ContrastiveLoss
    from pytorch_metric_learning.reducers import SumReducer

    class KLDistance(BaseDistance):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(normalize_embeddings=False)

        def compute_mat(self, query: Tensor, reference: Tensor) -> Tensor:
            return _divergences(query)  # without a reference set both are the batch

    losses: dict[float, Any] = {}

    def loss(logits: Tensor, labels: Tensor, margin: float = 2.0) -> Tensor:
        if margin not in losses:
            losses[margin] = ContrastiveLoss(
                pos_margin=0.0, neg_margin=margin, distance=KLDistance(), reducer=SumReducer()
            )
        return _mean(losses[margin](logits, labels), len(logits))

    return loss


def keops() -> Loss:
    """KeOps: the N x N matrix as a formula, reduced by code compiled for it, in O(N K) memory.

    The first call with another K compiles, which takes a C++ compiler and some ten seconds; KeOps
    keeps what it compiled for the next time.
    """
    for variable in ("KEOPS_VERBOSE", "PYKEOPS_VERBOSE"):  # read when they are imported
        os.environ.setdefault(variable, "0")
    from pykeops.torch import LazyTensor

    def loss(logits: Tensor, labels: Tensor, margin: float = 2.0) -> Tensor:
        log_p = functional.log_softmax(logits, dim=1)
        p = log_p.exp()
        entropy = (p * log_p).sum(1)
        ids = labels.to(logits.dtype)
        kind_i, kind_j = LazyTensor(ids[:, None, None]), LazyTensor(ids[None, :, None])
        divergence = LazyTensor(entropy[:, None, None])
        divergence = divergence - (LazyTensor(p[:, None, :]) * LazyTensor(log_p[None])).sum(-1)
        similar = 0.5 - (kind_i - kind_j).abs()
        terms = similar.ifelse(divergence, (margin - divergence).relu())
        return _mean(terms.sum(1).sum(), len(logits))

    return loss
