"""Data sets by name; a module for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from models.data import cifar10, digits, fashion_mnist
from models.data.image_data import DataError, DataOptions, ImageData, Level, MemorySplit, Split

__all__ = [
    "DATASETS",
    "DataError",
    "DataOptions",
    "ImageData",
    "Level",
    "MemorySplit",
    "Split",
    "load",
]

# Each loader takes (data_root, download, options) and raises DataError with a way out when it
# cannot.
DATASETS: dict[str, Callable[[Path, bool, DataOptions], ImageData]] = {
    "digits": digits.load,
    "fashion-mnist": fashion_mnist.load,
    "cifar10": cifar10.load,
}


def load(
    name: str, data_root: Path, download: bool = False, options: DataOptions | None = None
) -> ImageData:
    """The data set ``name`` (a key of :data:`DATASETS`), from the folder ``data_root``.

    Raises:
        DataError: it is not there (and ``download`` is not asked for or fails), or is damaged.
    """
    options = options or DataOptions()
    data = DATASETS[name](data_root, download, options)
    if options.limit is None:
        return data
    train, test = (
        _draw(split, options.limit, options.split_seed) for split in (data.train, data.test)
    )
    return replace(data, train=train, test=test)


def _draw(split: Split, count: int, seed: int) -> Split:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.subset(order[:count].sort().values)
