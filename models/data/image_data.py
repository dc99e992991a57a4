"""What a data set is to the programs: levels of classes, and two splits that give batches."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]  # images (b, C, H, W) float32, labels (b, G) int64


class DataError(Exception):
    """A data set is missing, damaged or not what it should be; the message says the way out."""


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read; one that a data set has no use for is refused by it.

    Args:
        image_size: side of the square images; None: the data set's own.
        workers: processes that read image files; 0: the program itself reads.
        in_memory: read all image files once, into memory (as bytes), instead of once an epoch.
        random_crop: train on random crops instead of the centre (image files).
        horizontal_flip: mirror every second training image, at random (image files).
        classes_csv: the user's own classes; see docs/data.md for the columns.
        levels: names of the levels to keep, the finest first; empty: all.
        test_fraction: share of the images kept for testing where a folder has no test/.
        split_seed: of that split, and of generated images.
        limit: at most this many images of each split, drawn by ``split_seed``; to try things out.
    """

    image_size: int | None = None
    workers: int = 2
    in_memory: bool = False
    random_crop: bool = False
    horizontal_flip: bool = False
    classes_csv: Path | None = None
    levels: tuple[str, ...] = ()
    test_fraction: float = 0.2
    split_seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Raises DataError for a number out of its range."""
        for name, low in (("image_size", 1), ("workers", 0), ("split_seed", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise DataError(f"{name}: expected at least {low}, got {value}.")
        if not 0 < self.test_fraction < 1:
            raise DataError(
                f"test_fraction: expected a number between 0 and 1, got {self.test_fraction}."
            )


@dataclass(frozen=True)
class Level:
    """One level of the class hierarchy: its name ("species") and its classes."""

    name: str
    classes: tuple[str, ...]


class Split(ABC):
    """Images and their labels (n, G), int64: column 0 fine, column 1 coarse, then coarser still.

    ``paths`` are the files that the images are read from, or were; empty where they are in none.
    """

    labels: Tensor
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a batch's images."""

    @abstractmethod
    def to(self, device: torch.device) -> Split:
        """The same split, giving its batches on ``device``."""

    @abstractmethod
    def subset(self, rows: Tensor) -> Split:
        """The images of these rows alone."""

    @abstractmethod
    def with_labels(self, labels: Tensor) -> Split:
        """The same images with these labels (n, G)."""

    @abstractmethod
    def in_memory(self) -> MemorySplit:
        """The same split, read once; images are cut as for evaluation."""

    @abstractmethod
    def _read(self, batches: Sequence[Tensor], seed: int | None) -> Iterator[Batch]:
        """The given rows, batch by batch; with the training transforms where there is a seed."""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All rows in their order, with the evaluation transforms."""
        return self._read(torch.arange(len(self)).split(batch_size), None)

    def shuffled_batches(
        self, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """All rows once, with the training transforms.

        The order, and one seed for all random transforms, are drawn from PyTorch's CPU generator
        when this is called: the same state gives the same batches, with any number of workers.

        Of each batch a process gets every ``world_size``-th row, from ``rank`` on. A last batch
        that has not two rows for each process is left out: one row has no pair, and batch
        normalisation refuses it.
        """
        batches = list(torch.randperm(len(self)).split(batch_size))
        if batches and len(batches[-1]) < 2 * world_size:
            batches.pop()
        seed = int(torch.randint(2**62, ()))
        return self._read([rows[rank::world_size] for rows in batches], seed)


@dataclass(frozen=True)
class MemorySplit(Split):
    """All images (n, C, H, W) as one tensor, on the device; no workers are needed.

    ``prepare`` makes a batch of them ready for the network (bytes to normalised float32); without
    it they are ready.
    """

    images: Tensor
    labels: Tensor
    prepare: Callable[[Tensor], Tensor] | None = None
    paths: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or len(self.labels) != len(self.images):
            raise ValueError(
                f"labels: expected shape ({len(self.images)}, levels), "
                f"got {tuple(self.labels.shape)}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> MemorySplit:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, rows: Tensor) -> MemorySplit:
        paths = tuple(self.paths[row] for row in rows.tolist()) if self.paths else ()
        rows = rows.to(self.labels.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows], paths=paths)

    def with_labels(self, labels: Tensor) -> MemorySplit:
        return replace(self, labels=labels)

    def in_memory(self) -> MemorySplit:
        return self

    def _read(self, batches: Sequence[Tensor], seed: int | None) -> Iterator[Batch]:
        for rows in batches:
            rows = rows.to(self.labels.device)
            images = self.images[rows]
            yield self.prepare(images) if self.prepare else images, self.labels[rows]


@dataclass(frozen=True)
class ImageData:
    """A data set. ``levels`` are the columns of the labels, the finest first; ``notes`` say where
    it came from and how it was prepared, for the report."""

    title: str
    levels: tuple[Level, ...]
    train: Split
    test: Split
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The finest classes."""
        return self.levels[0].classes

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self.train.image_shape

    def to(self, device: torch.device) -> ImageData:
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def with_classes(self, classes: tuple[str, ...]) -> ImageData:
        """The same data set with its finest classes, which are these, in this order.

        Raises:
            DataError: it has other classes.
        """
        missing, others = set(classes) - set(self.classes), set(self.classes) - set(classes)
        if missing or others:
            raise DataError(
                f"{self.title}: expected the classes that the run was trained on, got "
                f"{_some(others)} beside them, and {_some(missing)} not."
            )
        numbers = torch.tensor([classes.index(name) for name in self.classes])
        levels = (replace(self.levels[0], classes=classes), *self.levels[1:])
        train, test = (_renumbered(split, numbers) for split in (self.train, self.test))
        return replace(self, levels=levels, train=train, test=test)

    def identity(self) -> dict[str, Any]:
        """What tells this data set from others, as plain data; no pixel is read for it.

        The fingerprint is that of every image's labels and, of image files, of their paths in the
        folder that they all lie in: the data set may be moved, and kept in memory or not.
        """
        levels = {level.name: list(level.classes) for level in self.levels}
        seen = hashlib.sha256(json.dumps(levels).encode())
        paths = [str(path) for split in (self.train, self.test) for path in split.paths]
        folder = os.path.commonpath(paths) if paths else ""
        for split in (self.train, self.test):
            names = [str(path)[len(folder) :].lstrip(os.sep) for path in split.paths]
            seen.update(json.dumps([len(split), names, split.labels.tolist()]).encode())
        return {
            "levels": levels,
            "train_images": len(self.train),
            "test_images": len(self.test),
            "fingerprint": seen.hexdigest()[:16],
        }


def _renumbered(split: Split, numbers: Tensor) -> Split:
    """``split``, the class i of its finest level being class numbers[i]."""
    fine = numbers.to(split.labels.device)[split.labels[:, :1]]
    return split.with_labels(torch.cat((fine, split.labels[:, 1:]), dim=1))


def _some(names: set[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:5])) + (", ..." if len(names) > 5 else "")
    return shown or "none"


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor, str]:
    """Both splits by the mean and deviation of all training pixels, and a note of the two."""
    std, mean = torch.std_mean(train, correction=0)
    note = f"mean {mean:.4f}, standard deviation {std:.4f} of the training pixels"
    return (train - mean) / std, (test - mean) / std, note
