"""The loss of a batch, and of its pairs with the rows of earlier batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pairloss._arguments import check_number
from pairloss.pair_kl_hinge import PairKLHingeLoss

__all__ = ["CrossBatchMemory"]


class CrossBatchMemory(nn.Module):
    r"""A loss with a memory of the last ``size`` rows of logits and their labels.

    .. math:: \mathcal{L}(z) + \lambda \mathcal{L}(z, \text{memory})

    with the criterion's loss of the batch, and its loss of the batch against the memory as a
    reference set, whose gradient goes to the batch alone. Afterwards, in training mode, the batch
    replaces the oldest rows of the memory. After X. Wang et al., "Cross-batch memory for embedding
    learning", 2020.

    The memory is part of ``state_dict()``, moves with the module, and is of one size from the
    start: rows that were never written carry the criterion's ``ignore_index`` as their label. So
    nothing waits for a GPU, and ``torch.compile`` compiles once.

    Args:
        criterion: what computes both terms, with ``return_stats=False``.
        size: rows of the memory.
        columns: K.
        levels: G of labels (N, G); 0 for labels (N,).
        memory_weight: :math:`\lambda`.
        warm_up: the number of calls in training mode before the memory counts, while the network
            still changes too fast for old rows to mean much. They are remembered all the same.

    Do not let DistributedDataParallel wrap it, which would overwrite every rank's memory with that
    of rank 0: a loss has no parameters.

    Example::

        criterion = pairloss.CrossBatchMemory(pairloss.PairKLHingeLoss(), size=4096, columns=10)
        loss = criterion(model(images), labels)
        loss.backward()
    """

    logits: Tensor
    labels: Tensor
    written: Tensor
    calls: Tensor

    def __init__(
        self,
        criterion: PairKLHingeLoss,
        size: int,
        columns: int,
        *,
        levels: int = 0,
        memory_weight: float = 1.0,
        warm_up: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(criterion, PairKLHingeLoss):
            raise TypeError(
                f"criterion: expected a PairKLHingeLoss, got {type(criterion).__name__}"
            )
        if criterion.return_stats:
            raise ValueError("criterion: expected return_stats=False, got True")
        numbers = {"size": (size, 1), "columns": (columns, 1), "levels": (levels, 0)}
        for name, (value, least) in {**numbers, "warm_up": (warm_up, 0)}.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name}: expected a value >= {least}, got {value}")
        check_number("memory_weight", memory_weight)
        self.criterion, self.memory_weight, self.warm_up = criterion, memory_weight, warm_up
        of_labels = (size, levels) if levels else (size,)
        self.register_buffer("logits", torch.zeros(size, columns))
        self.register_buffer("labels", torch.full(of_labels, criterion.ignore_index))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))  # rows, ever
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of ``logits`` (N, K) with ``labels`` (N,) or (N, G); (N,) for "none"."""
        loss: Tensor = self.criterion(logits, labels)
        # While warming up, a memory without a label.
        known = torch.where(self.calls >= self.warm_up, self.labels, self.criterion.ignore_index)
        # The copy: what comes below must not change what the backward needs.
        memory = self.logits.to(logits.dtype, copy=True)
        loss = loss + self.memory_weight * self.criterion(logits, labels, memory, known)
        if self.training:
            self._remember(logits.detach(), labels)
        return loss

    def reset(self) -> None:
        """Forget everything, and warm up again."""
        self.labels.fill_(self.criterion.ignore_index)
        self.written.zero_()
        self.calls.zero_()

    @torch.no_grad()
    def _remember(self, logits: Tensor, labels: Tensor) -> None:
        size = len(self.labels)
        logits, labels = logits[-size:], labels[-size:]
        place = (self.written + torch.arange(len(labels), device=self.written.device)) % size
        self.logits.index_copy_(0, place, logits.to(self.logits.dtype))
        self.labels.index_copy_(0, place, labels.to(self.labels.dtype))
        self.written += len(labels)
        self.calls += 1

    def extra_repr(self) -> str:
        size, columns = self.logits.shape
        return (
            f"size={size}, columns={columns}, memory_weight={self.memory_weight}, "
            f"warm_up={self.warm_up}"
        )
