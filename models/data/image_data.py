"""What a data set is to the programs: two splits of images and labels, whole, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


class DataError(Exception):
    """A data set is missing or damaged; the message says how to get it."""


@dataclass(frozen=True)
class Split:
    """Images (n, C, H, W), float32, normalised; labels (n,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def shuffled_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows once, in an order drawn from PyTorch's CPU generator.

        A last batch of a single row is left out: it has no pair, and batch normalisation refuses
        it. The data is one tensor on the device, so this needs no worker processes.
        """
        order = torch.randperm(len(self)).to(self.labels.device)
        for rows in order.split(batch_size):
            if len(rows) > 1:
                yield self.images[rows], self.labels[rows]


@dataclass(frozen=True)
class ImageData:
    """A data set. ``notes`` say where it came from and how it was prepared, for the report."""

    title: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def in_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> ImageData:
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor, str]:
    """Both splits by the mean and deviation of all training pixels, and a note of the two."""
    std, mean = torch.std_mean(train, correction=0)
    note = f"mean {mean:.4f}, standard deviation {std:.4f} of the training pixels"
    return (train - mean) / std, (test - mean) / std, note
