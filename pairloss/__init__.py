"""Fused all-pairs contrastive losses for PyTorch."""

from pairloss import distributed, reference
from pairloss._arguments import PairStats
from pairloss._version import __version__
from pairloss.cross_batch_memory import CrossBatchMemory
from pairloss.grad_cache import loss_and_grad
from pairloss.pair_kl_hinge import (
    PairKLHingeLoss,
    pair_kl_hinge_loss,
    pair_kl_hinge_loss_from_similarity,
)
from pairloss.pair_list_kl_hinge import pair_kl_hinge_loss_from_pairs

__all__ = [
    "CrossBatchMemory",
    "PairKLHingeLoss",
    "PairStats",
    "__version__",
    "distributed",
    "loss_and_grad",
    "pair_kl_hinge_loss",
    "pair_kl_hinge_loss_from_pairs",
    "pair_kl_hinge_loss_from_similarity",
    "reference",
]
