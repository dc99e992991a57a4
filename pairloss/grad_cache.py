"""The loss and its gradient at once, without a graph: for batches that are encoded in chunks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pairloss._arguments import _check_logits
from pairloss.pair_kl_hinge import pair_kl_hinge_loss

__all__ = ["loss_and_grad"]


def loss_and_grad(
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
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """:func:`pairloss.pair_kl_hinge_loss` and its gradient with respect to ``logits`` (N, K).

    Nothing is recorded, and whether anything requires a gradient does not matter: the logits may
    come from ``torch.no_grad()``. Encode a large batch in chunks without a graph, call this, then
    encode the chunks again one by one and give each its rows of the gradient (GradCache: L. Gao et
    al., "Scaling deep contrastive learning batch size under memory limited setup", 2021;
    examples/grad_cache.py has it in full).

    Args:
        reduction: ``"mean"`` or ``"sum"``.

    The other arguments are those of :func:`pairloss.pair_kl_hinge_loss`.

    Returns:
        The loss, 0-d, and the gradient, (N, K): both float64 for float64 logits, else float32, also
        for half precision, where a mean over all pairs may be below float16's range; apply a loss
        scale before you convert it. The reference set is a constant.
    """
    if reduction == "none":
        raise ValueError('reduction: expected "mean" or "sum", got "none", which is not one number')
    _check_logits("logits", logits)
    full = torch.float64 if logits.dtype == torch.float64 else torch.float32
    leaf = logits.detach().to(full).requires_grad_()
    if ref_logits is not None:
        ref_logits = ref_logits.detach().to(full)
    with torch.enable_grad():
        loss = pair_kl_hinge_loss(
            leaf,
            labels,
            ref_logits,
            ref_labels,
            margin=margin,
            gradient=gradient,
            reduction=reduction,
            ignore_index=ignore_index,
            level_weights=level_weights,
            similar_weight=similar_weight,
            dissimilar_weight=dissimilar_weight,
            balance=balance,
            precision=precision,
            sample_weights=sample_weights,
            ref_sample_weights=ref_sample_weights,
            impl=impl,
        )
        (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad
