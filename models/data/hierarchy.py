"""Classes on several levels: which coarse class each fine class belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.data.image_data import Level

UNKNOWN = -100  # the label that PyTorch's cross-entropy and the pair loss ignore


@dataclass(frozen=True)
class Hierarchy:
    """``levels``, the finest first, and the class of each fine class on all levels, (K, G)."""

    levels: tuple[Level, ...]
    table: Tensor

    def labels(self, fine: Tensor) -> Tensor:
        """Labels on the finest level, (n,), to labels on all levels, (n, G) int64."""
        return self.table[fine.long()]


def hierarchy(level_names: Sequence[str], classes: Mapping[str, Sequence[str]]) -> Hierarchy:
    """The hierarchy of ``classes``: fine name -> the names of its coarser classes, "" if unknown.

    Classes are numbered on each level in the order in which they first appear.
    """
    levels, columns = [], []
    rows = [(fine, *coarser) for fine, coarser in classes.items()]
    for level, names in zip(level_names, zip(*rows, strict=True), strict=True):
        known = tuple(dict.fromkeys(name for name in names if name))
        numbers = {name: i for i, name in enumerate(known)} | {"": UNKNOWN}
        levels.append(Level(level, known))
        columns.append([numbers[name] for name in names])
    return Hierarchy(tuple(levels), torch.tensor(columns).T.contiguous())
