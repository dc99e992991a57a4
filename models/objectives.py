"""What is minimised: cross-entropy on the last layer, or the pair loss on a variant's layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import pairloss
from models import distributed
from models.networks.variants import FINE, Tap
from pairloss.distributed import pair_kl_hinge_loss as global_pair_loss

Outputs = dict[str, Tensor]  # of a network's layers, by name
# A loss of (outputs, labels (N, levels)), and named figures worth a curve.
Objective = Callable[[Outputs, Tensor], tuple[Tensor, dict[str, Tensor]]]


def cross_entropy(outputs: Outputs, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective of classification: the last layer's outputs are classes.

    In several processes it is the mean over all processes' rows, however they are shared out, and
    its gradient is made larger by the number of processes, as gradients are averaged.
    """
    logits, fine = outputs["fc3"].float(), labels[:, FINE]
    processes = distributed.world_size()
    if processes == 1:
        return functional.cross_entropy(logits, fine), {}
    total = functional.cross_entropy(logits, fine, reduction="sum")
    mine = torch.stack((total.detach(), torch.full_like(total, len(fine))))
    sum_of_all, rows_of_all = distributed.sum_over_processes(mine)
    loss = total * (processes / rows_of_all)
    return loss + (sum_of_all / rows_of_all - loss.detach()), {}


class PairObjective:
    """The objective of clustering: the weighted sum of the pair loss on each of ``taps``.

    The figures of a tap's similar and dissimilar pairs are weighted too: they add up to the loss.

    Labels only say which pairs are similar. In several processes (see :mod:`models.distributed`)
    the pairs are those of all processes' rows together. ``options`` are those of
    :func:`pairloss.pair_kl_hinge_loss`. Its gradient is in the recipes that of Hsu & Kira's code,
    through the second argument of KL only: the paper follows their implementation, and it trains
    better. With the exact one about every second run ends with two classes under one output, since
    different mixtures of outputs can also be a margin apart.
    """

    def __init__(self, taps: Sequence[Tap], **options: Any) -> None:
        self.taps = tuple(taps)
        # The taps' weights as those of both kinds of pairs: nothing is left to multiply.
        self.options = [
            {
                **options,
                "similar_weight": tap.weight * options.get("similar_weight", 1.0),
                "dissimilar_weight": tap.weight * options.get("dissimilar_weight", 1.0),
            }
            for tap in self.taps
        ]

    def __call__(self, outputs: Outputs, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        alone = distributed.world_size() == 1
        pair_loss = pairloss.pair_kl_hinge_loss if alone else global_pair_loss
        losses = []
        figures = {}
        by_level = labels.t().contiguous()  # one copy, instead of one in each call
        for tap, options in zip(self.taps, self.options, strict=True):
            loss, stats = pair_loss(
                outputs[tap.layer], by_level[tap.level], return_stats=True, **options
            )
            losses.append(loss)
            figures[f"{tap.layer}_active_fraction"] = stats.active_fraction
            figures[f"{tap.layer}_similar_loss"] = stats.similar_loss
            figures[f"{tap.layer}_dissimilar_loss"] = stats.dissimilar_loss
        return sum(losses[1:], start=losses[0]), figures
