"""The all-pairs symmetric KL-hinge contrastive loss, as a function and as a module."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor, nn

from pairloss import _ops, reference
from pairloss._arguments import (
    IMPLEMENTATIONS,
    PairStats,
    check_arguments,
    check_choice,
    check_options,
)

__all__ = ["PairKLHingeLoss", "pair_kl_hinge_loss"]

# What the fused kernels run on; elsewhere (MPS, XPU, ...) impl="auto" means the reference.
_FUSED_DEVICES = ("cpu", "cuda", "meta")


@overload
def pair_kl_hinge_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = ...,
    gradient: str = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    return_stats: Literal[False] = ...,
    impl: str = ...,
) -> Tensor: ...


@overload
def pair_kl_hinge_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = ...,
    gradient: str = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    return_stats: Literal[True],
    impl: str = ...,
) -> tuple[Tensor, PairStats]: ...


def pair_kl_hinge_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = 2.0,
    gradient: str = "both",
    reduction: str = "mean",
    ignore_index: int = -100,
    return_stats: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, PairStats]:
    r"""Contrastive loss over every pair of a batch, from weak labels (similar / dissimilar).

    With :math:`P_i = \mathrm{softmax}(z_i)` and :math:`D_{ij} = \mathrm{KL}(P_i \| P_j)` in nats,

    .. math::
        \ell_{ij} = \begin{cases}
            D_{ij} & y_i = y_j \\ \max(m - D_{ij}, 0) & y_i \ne y_j
        \end{cases} \qquad
        \mathcal{L} = \frac{2}{N (N - 1)} \sum_{i < j} (\ell_{ij} + \ell_{ji})

    Memory is O(N K): neither the similarity matrix nor the matrix of divergences is ever stored.

    Args:
        logits: (N, K) float64, float32, float16 or bfloat16, on CPU or CUDA, any strides: the
            activations of a layer, before the softmax. Log-probabilities may be passed as they are
            (the softmax leaves them unchanged), probabilities as ``p.log()``. ``-inf`` is a masked
            class. Half precision is computed and accumulated in float32.
        labels: (N,) class ids of any integer dtype and any values, on the device of ``logits``.
            Two rows are similar if their labels are equal.
        margin: :math:`m \ge 0`, in nats. A dissimilar pair is active, and has a gradient, where
            :math:`D_{ij} < m` (strict).
        gradient: ``"both"``, the exact gradient; or ``"second"``, the gradient through the second
            argument of KL only, as in the code of Hsu & Kira (L2C).
        reduction: ``"mean"`` over the valid unordered pairs; ``"sum"`` over them; or ``"none"``:
            (N,), for each row the sum over its valid partners, so every pair stands in two rows.
        ignore_index: rows with this label take no part, and their gradient is 0.
        return_stats: also return a :class:`pairloss.PairStats`.
        impl: ``"auto"`` or ``"fused"``, this library's kernels; ``"reference"``, plain PyTorch.

    Returns:
        The loss: 0-d, or (N,) for ``"none"``; float64 for float64 logits, else float32. With
        ``return_stats`` a pair of the loss and the statistics. The loss of an empty set of pairs is
        0 with a zero gradient. The loss of two similar rows of which one excludes (``-inf``) what
        the other allows is infinite. NaN in a valid row gives NaN.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has a wrong shape, device or value.
        RuntimeError: the fused kernels could not be loaded; or the second derivative was asked for,
            which ``impl="reference"`` has.

    The result is the same to the bit from run to run, and on the CPU at any number of threads.

    Source: "Cluster-based warm-start nets", Eqs. 2-4; Y.-C. Hsu and Z. Kira, "Neural network-based
    clustering using pairwise constraints", 2015. L2C's value is ours times (N - 1) / (2 N).
    """
    labels = check_arguments(logits, labels, margin, gradient, reduction, ignore_index)
    check_choice("impl", impl, IMPLEMENTATIONS)
    if impl == "reference" or (impl == "auto" and logits.device.type not in _FUSED_DEVICES):
        return reference.evaluate(
            logits, labels, margin, gradient, reduction, ignore_index, return_stats
        )
    loss, stats = _ops.pair_kl_hinge(logits, labels, margin, gradient, reduction, ignore_index)
    return (loss, PairStats(*stats.unbind())) if return_stats else loss


class PairKLHingeLoss(nn.Module):
    """:func:`pair_kl_hinge_loss` as a module; the arguments mean the same.

    Example::

        criterion = pairloss.PairKLHingeLoss(margin=2.0)
        loss = criterion(model(images), labels)
        loss.backward()
    """

    def __init__(
        self,
        margin: float = 2.0,
        *,
        gradient: str = "both",
        reduction: str = "mean",
        ignore_index: int = -100,
        return_stats: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_options(margin, gradient, reduction, ignore_index)
        check_choice("impl", impl, IMPLEMENTATIONS)
        self.margin = margin
        self.gradient = gradient
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.return_stats = return_stats
        self.impl = impl

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, PairStats]:
        """The loss of ``logits`` (N, K) with ``labels`` (N,)."""
        result: Tensor | tuple[Tensor, PairStats] = pair_kl_hinge_loss(  # type: ignore[call-overload]
            logits,
            labels,
            margin=self.margin,
            gradient=self.gradient,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            return_stats=self.return_stats,
            impl=self.impl,
        )
        return result

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, gradient={self.gradient!r}, reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}, impl={self.impl!r}"
        )
