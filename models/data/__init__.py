"""Data sets by name. Each module loads one, whole, as tensors ready for a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.data import cifar10, digits, fashion_mnist
from models.data.image_data import DataError, ImageData, Split

__all__ = ["DATASETS", "DataError", "ImageData", "Split", "load"]

# Each loader takes (data_root, download) and raises DataError with a way out when it cannot.
DATASETS: dict[str, Callable[[Path, bool], ImageData]] = {
    "digits": digits.load,
    "fashion-mnist": fashion_mnist.load,
    "cifar10": cifar10.load,
}


def load(name: str, data_root: Path, download: bool = False) -> ImageData:
    """The data set ``name`` (a key of :data:`DATASETS`)."""
    return DATASETS[name](data_root, download)
