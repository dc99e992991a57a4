"""The loss over a list of must-link and cannot-link pairs."""

from __future__ import annotations

from torch import Tensor

from pairloss import _ops, reference
from pairloss._arguments import (
    PairStats,
    check_options,
    check_pair_list,
    wants_reference,
)

__all__ = ["pair_kl_hinge_loss_from_pairs"]


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
    impl: str = "auto",
) -> Tensor | tuple[Tensor, PairStats]:
    r"""As :func:`pair_kl_hinge_loss`, over the pairs that are listed and no others.

    With pair e of rows :math:`(i_e, j_e)`, and :math:`\ell_{ij}` similar or dissimilar as the list
    says,

    .. math:: \mathcal{L} = \frac{1}{E} \sum_e (\ell_{i_e j_e} + \ell_{j_e i_e})

    It costs O(E K) time and O(E + N K) memory, for E up to tens of millions. Rows that are in no
    pair take no part, and their gradient is 0.

    Args:
        pairs: (E, 2), any integer dtype, on the device of ``logits``: two rows each, in either
            order. A pair that is listed several times counts as often, also in the number that
            "mean" divides by; also where it is listed as similar and as dissimilar (see
            :mod:`pairloss.constraints`, which finds such contradictions). A row with itself is no
            pair: ignored, also in that number.
        similar: (E,) bool: True, must-link; False, cannot-link.
        pair_weights: (E,) floats: factor of each pair, default 1. No gradient to them, and not in
            the number that "mean" divides by.

    Raises:
        IndexError: an entry of ``pairs`` is not a row of ``logits``; names the first one. On a GPU,
            where to look would make the host wait, the result is NaN instead.

    The other arguments, the result and its statistics are those of :func:`pair_kl_hinge_loss`; with
    ``reduction="none"`` the value of a row is the sum over the pairs that it is in. The result is
    the same to the bit from run to run, and on the CPU at any number of threads.
    """
    options = check_options(
        margin, gradient, reduction, -100, similar_weight, dissimilar_weight, balance
    )
    inputs = check_pair_list(logits, pairs, similar, pair_weights)
    if wants_reference(impl, logits):
        return reference.evaluate_pairs(inputs, options, return_stats)
    loss, stats = _ops.pair_list_kl_hinge(inputs, options)
    return (loss, PairStats.of(stats, levels=False)) if return_stats else loss
