"""Classes on several levels: which coarse class each fine class belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.data.image_data import Level


@dataclass(frozen=True)
class Hierarchy:
    """``levels``, the finest first, and the class of each fine class on all levels, (K, G)."""

    levels: tuple[Level, ...]
    table: Tensor

    def labels(self, fine: Tensor) -> Tensor:
        """Labels on the finest level, (n,), to labels on all levels, (n, G) int64."""
        return self.table[fine.long()]


def hierarchy(level_names: Sequence[str], classes: Mapping[str, Sequence[str]]) -> Hierarchy:
    """The hierarchy of ``classes``: fine name -> the names of its coarser classes.

    Classes are numbered on each level in the order in which they first appear.
    """
    rows = [(fine, *coarser) for fine, coarser in classes.items()]
    columns = [dict.fromkeys(names) for names in zip(*rows, strict=True)]
    numbers = [{name: i for i, name in enumerate(column)} for column in columns]
    table = [[number[name] for number, name in zip(numbers, row, strict=True)] for row in rows]
    levels = zip(level_names, map(tuple, columns), strict=True)
    return Hierarchy(tuple(Level(name, names) for name, names in levels), torch.tensor(table))
