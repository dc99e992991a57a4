"""The loss as one of pytorch-metric-learning's: its call convention, reducers and miners.

Needs pytorch-metric-learning, which the rest of the package does not:
``import pairloss.metric_learning``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pairloss._arguments import check_options
from pairloss.pair_kl_hinge import pair_kl_hinge_loss
from pairloss.pair_list_kl_hinge import pair_kl_hinge_loss_from_pairs

try:
    from pytorch_metric_learning.losses import BaseMetricLossFunction
    from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_pairs
except ImportError as error:
    raise ImportError(
        "pairloss.metric_learning needs pytorch-metric-learning: "
        "pip install pytorch-metric-learning"
    ) from error

__all__ = ["PairKLHingeLoss"]


class PairKLHingeLoss(BaseMetricLossFunction):  # type: ignore[misc]
    """:func:`pairloss.pair_kl_hinge_loss`, called as pytorch-metric-learning calls a loss.

    ``loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)``, where the
    embeddings are logits: no distance and no normalisation is applied to them.

    - Without ``indices_tuple``: all pairs, those with ``ref_emb`` as a reference set.
    - With the ``indices_tuple`` of a miner (pairs, or triplets, of which the pairs are taken): the
      pairs that it names, each as often as it names it.
    - Without a ``reducer``: the mean over the pairs. With one: it gets every row's sum over its
      pairs (``reduction="none"``).
    - ``DistributedLossWrapper``: gives the loss of the global batch and its exact gradient under
      DDP, for batches of equal size; ``pairloss.distributed`` does so for any and takes less
      memory. ``efficient=True`` is refused: it lists pairs within a process twice, those of two
      processes once.
    - Its ``CrossBatchMemory`` refuses all losses but its own; see
      :class:`pairloss.CrossBatchMemory`.

    Args:
        margin, gradient, ignore_index, similar_weight, dissimilar_weight, balance, precision, impl:
            see :func:`pairloss.pair_kl_hinge_loss`. Labels that a miner has seen are not looked at
            again: ``ignore_index`` has no effect on its pairs, nor has ``precision``.
        kwargs: of BaseMetricLossFunction: ``reducer``, ``embedding_regularizer``, ...
    """

    def __init__(
        self,
        margin: float = 2.0,
        *,
        gradient: str = "both",
        ignore_index: int = -100,
        similar_weight: float = 1.0,
        dissimilar_weight: float = 1.0,
        balance: str | None = None,
        precision: str = "fp32",
        impl: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.reduction = "mean" if kwargs.get("reducer") is None else "none"
        check_options(
            margin,
            gradient,
            self.reduction,
            ignore_index,
            similar_weight,
            dissimilar_weight,
            balance,
            precision,
        )
        self.options: dict[str, Any] = {
            "margin": margin,
            "gradient": gradient,
            "reduction": self.reduction,
            "similar_weight": similar_weight,
            "dissimilar_weight": dissimilar_weight,
            "balance": balance,
            "impl": impl,
        }
        self.ignore_index = ignore_index
        self.precision = precision

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, dict[str, Any]]:
        """In the base class's terms; without a reference set it passes the batch as one."""
        has_reference = ref_emb is not embeddings
        if indices_tuple is not None:
            if has_reference:
                raise ValueError(
                    "indices_tuple: expected None beside ref_emb, got a tuple; of pytorch-metric-"
                    "learning, use DistributedLossWrapper with efficient=False, and no miner with "
                    "a reference set"
                )
            losses = self._of_listed(embeddings, labels, indices_tuple)
        else:
            if labels is None:
                raise ValueError("labels: expected a Tensor without indices_tuple, got None")
            reference = (ref_emb, ref_labels) if has_reference else ()
            losses = pair_kl_hinge_loss(
                embeddings,
                labels,
                *reference,
                ignore_index=self.ignore_index,
                precision=self.precision,
                **self.options,
            )
        if self.reduction == "mean":
            kind, rows = "already_reduced", None
        else:
            kind, rows = "element", torch.arange(len(embeddings), device=embeddings.device)
        return {"loss": {"losses": losses, "indices": rows, "reduction_type": kind}}

    def _of_listed(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: tuple[Tensor, ...]
    ) -> Tensor:
        first, positive, second, negative = convert_to_pairs(indices_tuple, labels)
        alike, unlike = torch.stack([first, positive], 1), torch.stack([second, negative], 1)
        pairs = torch.cat([alike, unlike])
        similar = torch.arange(len(pairs), device=pairs.device) < len(alike)
        loss = pair_kl_hinge_loss_from_pairs(embeddings, pairs, similar, **self.options)
        assert isinstance(loss, Tensor)
        return loss
