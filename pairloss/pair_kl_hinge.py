"""The all-pairs symmetric KL-hinge contrastive loss, as functions and as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor, nn

from pairloss import _ops, reference
from pairloss._arguments import (
    IMPLEMENTATIONS,
    Inputs,
    Options,
    PairStats,
    check_choice,
    check_inputs,
    check_options,
    wants_reference,
)

__all__ = ["PairKLHingeLoss", "pair_kl_hinge_loss", "pair_kl_hinge_loss_from_similarity"]


@overload
def pair_kl_hinge_loss(
    logits: Tensor,
    labels: Tensor,
    ref_logits: Tensor | None = ...,
    ref_labels: Tensor | None = ...,
    *,
    margin: float = ...,
    gradient: str = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    level_weights: Sequence[float] | Tensor | None = ...,
    similar_weight: float = ...,
    dissimilar_weight: float = ...,
    balance: str | None = ...,
    precision: str = ...,
    sample_weights: Tensor | None = ...,
    ref_sample_weights: Tensor | None = ...,
    return_stats: Literal[False] = ...,
    impl: str = ...,
) -> Tensor: ...


@overload
def pair_kl_hinge_loss(
    logits: Tensor,
    labels: Tensor,
    ref_logits: Tensor | None = ...,
    ref_labels: Tensor | None = ...,
    *,
    margin: float = ...,
    gradient: str = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    level_weights: Sequence[float] | Tensor | None = ...,
    similar_weight: float = ...,
    dissimilar_weight: float = ...,
    balance: str | None = ...,
    precision: str = ...,
    sample_weights: Tensor | None = ...,
    ref_sample_weights: Tensor | None = ...,
    return_stats: Literal[True],
    impl: str = ...,
) -> tuple[Tensor, PairStats]: ...


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
            Two rows are similar if their labels are equal. Or (N, G): G levels of labels, as of a
            class hierarchy, that share one pass over the pairs; the loss is the weighted sum of the
            losses of the levels, each over its own valid pairs.
        ref_logits, ref_labels: (M, K) in the dtype of ``logits``, and (M,) or (M, G): a reference
            set, such as a memory bank. The loss is then over all pairs (i, j) of a row of the batch
            and a row of the reference set (and none within either), and "mean" over their number.
            The reference set gets a gradient only if it requires one.
        margin: :math:`m \ge 0`, in nats. A dissimilar pair is active, and has a gradient, where
            :math:`D_{ij} < m` (strict).
        gradient: ``"both"``, the exact gradient; or ``"second"``, the gradient through the second
            argument of KL only, as in the code of Hsu & Kira (L2C).
        reduction: ``"mean"`` over the valid unordered pairs; ``"sum"`` over them; or ``"none"``:
            (N,), for each row the sum over its valid partners, so every pair of the batch stands in
            two rows.
        ignore_index: rows with this label take no part, and their gradient is 0; with G levels, no
            part in the level where they have it.
        level_weights: G weights of the levels, default all 1.
        similar_weight, dissimilar_weight: factors of :math:`\ell_{ij}` for pairs of each kind. They
            do not enter the number that "mean" divides by.
        balance: ``"pairs"``: similar and dissimilar pairs have equal weight, whatever their number:
            "mean" is half the mean over similar pairs plus half that over dissimilar ones. ("sum"
            and "none" are scaled alike: by pairs / (2 similar pairs) and its counterpart.) Against
            the imbalance of 1 : (n - 1) in n classes of equal size.
        precision: the least accuracy of float32 and half-precision logits on a GPU's tensor cores:
            ``"fp32"``, float32's; ``"tf32x3"``, much the same; ``"bf16x3"``, divergences and
            gradient to 16 bits, for half of the products; ``"tf32"``, divergences to 11 bits, the
            gradient to 16. Dissimilar pairs that are nearer to the margin than that may be taken
            for active, or not; docs/cuda.md has the errors. More may always be computed: the CPU,
            float64 and small batches do as for ``"fp32"``.
        sample_weights, ref_sample_weights: (N,) and (M,) floats: pair (i, j) weighs
            :math:`w_i w_j`, default 1. No gradient to them, and not in the number that "mean"
            divides by.
        return_stats: also return a :class:`pairloss.PairStats`.
        impl: ``"auto"`` or ``"fused"``, this library's kernels; ``"reference"``, plain PyTorch.

    Returns:
        The loss: 0-d, or (N,) for ``"none"``; float64 for float64 logits, else float32. With
        ``return_stats`` a pair of the loss and the statistics. The loss of an empty set of pairs is
        0 with a zero gradient. The loss of two similar rows of which one excludes (``-inf``) what
        the other allows is infinite. NaN in a row that takes part gives
        NaN: the loss, all rows of it for ``"none"``, and all gradients.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has a wrong shape, device or value.
        RuntimeError: the fused kernels could not be loaded; or the second derivative was asked for,
            which ``impl="reference"`` has.

    The result is the same to the bit from run to run, and on the CPU at any number of threads.

    Source: "Cluster-based warm-start nets", Eqs. 2-4; Y.-C. Hsu and Z. Kira, "Neural network-based
    clustering using pairwise constraints", 2015. L2C's value is ours times (N - 1) / (2 N).
    """
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
    if (
        ref_logits is None
        and ref_labels is None
        and sample_weights is None
        and ref_sample_weights is None
        and level_weights is None
        and impl in ("auto", "fused")
    ):
        loss, stats = _ops.pair_kl_hinge_of_labels(logits, labels, options, return_stats)
        if loss is not None:
            return loss if stats is None else (loss, PairStats.of(stats, levels=labels.dim() == 2))
    inputs = check_inputs(
        logits,
        labels,
        ref_logits,
        ref_labels,
        sample_weights,
        ref_sample_weights,
        level_weights,
    )
    return _evaluate(inputs, options, return_stats, impl)


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
    impl: str = "auto",
) -> Tensor | tuple[Tensor, PairStats]:
    r"""As :func:`pair_kl_hinge_loss`, with the kind of every pair given one by one.

    Args:
        similarity: (N, N), on the device of ``logits``. int8 or floats, of which the sign counts:
            positive, similar; 0, unknown: takes no part, nor in the number that "mean" divides by;
            negative, dissimilar. Or bool: similar and dissimilar. The diagonal is ignored. Entry
            (i, j) speaks of :math:`\mathrm{KL}(P_i \| P_j)`, so a matrix need not be symmetric;
            an ordered pair without its counterpart counts as half a pair.

    The matrix is read where it lies, a tile at a time; beyond it memory is O(N K). L2C's ``simi``
    is this matrix flattened row by row, for all N^2 ordered pairs; its zeros, meant to be ignored,
    add KL + max(m - KL, 0) there, and are truly ignored here.
    """
    options = check_options(
        margin, gradient, reduction, -100, similar_weight, dissimilar_weight, balance, precision
    )
    inputs = check_inputs(logits, similarity=similarity, sample_weights=sample_weights)
    return _evaluate(inputs, options, return_stats, impl)


def _evaluate(
    inputs: Inputs, options: Options, return_stats: bool, impl: str
) -> Tensor | tuple[Tensor, PairStats]:
    if wants_reference(impl, inputs.logits):
        return reference.evaluate(inputs, options, return_stats)
    loss, stats = _ops.pair_kl_hinge(inputs, options)
    return (loss, PairStats.of(stats, levels=inputs.has_levels)) if return_stats else loss


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
        level_weights: Sequence[float] | None = None,
        similar_weight: float = 1.0,
        dissimilar_weight: float = 1.0,
        balance: str | None = None,
        precision: str = "fp32",
        return_stats: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_options(
            margin,
            gradient,
            reduction,
            ignore_index,
            similar_weight,
            dissimilar_weight,
            balance,
            precision,
        )
        check_choice("impl", impl, IMPLEMENTATIONS)
        self.margin = margin
        self.gradient = gradient
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.level_weights = None if level_weights is None else tuple(level_weights)
        self.similar_weight = similar_weight
        self.dissimilar_weight = dissimilar_weight
        self.balance = balance
        self.precision = precision
        self.return_stats = return_stats
        self.impl = impl

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        ref_logits: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        sample_weights: Tensor | None = None,
        ref_sample_weights: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, PairStats]:
        """The loss of ``logits`` (N, K) with ``labels`` (N,) or (N, G)."""
        result: Tensor | tuple[Tensor, PairStats] = pair_kl_hinge_loss(  # type: ignore[call-overload, misc]
            logits,
            labels,
            ref_logits,
            ref_labels,
            margin=self.margin,
            gradient=self.gradient,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            level_weights=self.level_weights,
            similar_weight=self.similar_weight,
            dissimilar_weight=self.dissimilar_weight,
            balance=self.balance,
            precision=self.precision,
            sample_weights=sample_weights,
            ref_sample_weights=ref_sample_weights,
            return_stats=self.return_stats,
            impl=self.impl,
        )
        return result

    def extra_repr(self) -> str:
        options = [
            f"margin={self.margin}, gradient={self.gradient!r}, reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}"
        ]
        usual = {"level_weights": None, "similar_weight": 1.0, "dissimilar_weight": 1.0}
        for name, value in {**usual, "balance": None, "precision": "fp32"}.items():
            if getattr(self, name) != value:
                options.append(f"{name}={getattr(self, name)!r}")
        return ", ".join([*options, f"impl={self.impl!r}"])
