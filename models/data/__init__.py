"""Data sets by name; a module for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from models.data import birdsnap, cifar10, digits, fashion_mnist, generated, image_folder
from models.data.file_split import worker_failures
from models.data.image_data import DataError, DataOptions, ImageData, Level, MemorySplit, Split

__all__ = [
    "DATASETS",
    "DataError",
    "DataOptions",
    "ImageData",
    "Level",
    "MemorySplit",
    "Source",
    "Split",
    "load",
    "worker_failures",
]

Loader = Callable[[Path, bool, DataOptions], ImageData]


@dataclass(frozen=True)
class Source:
    """``load`` takes (data_root, download, options) and raises DataError with a way out when it
    cannot; ``options`` are those it has a use for."""

    load: Loader
    options: frozenset[str] = frozenset()


# limit, levels, workers and in_memory are taken by all: what is in memory needs no worker.
COMMON = frozenset({"limit", "split_seed", "levels", "workers", "in_memory"})
FILES = frozenset({"image_size", "random_crop", "horizontal_flip"})
DATASETS = {
    "digits": Source(digits.load),
    "fashion-mnist": Source(fashion_mnist.load),
    "cifar10": Source(cifar10.load),
    "birdsnap34": Source(birdsnap.load_34, FILES | {"classes_csv"}),
    "birdsnap": Source(birdsnap.load, FILES),
    "image-folder": Source(image_folder.load, FILES | {"classes_csv", "test_fraction"}),
    "generated-birds": Source(generated.load_birds, frozenset({"image_size"})),
    "generated-many": Source(generated.load_many, frozenset({"image_size"})),
}


def load(
    name: str, data_root: Path, download: bool = False, options: DataOptions | None = None
) -> ImageData:
    """The data set ``name`` (a key of :data:`DATASETS`), from the folder ``data_root``.

    Raises:
        DataError: it is not there (and ``download`` is not asked for or fails), is damaged, or is
            not what ``options`` ask for.
    """
    options = options or DataOptions()
    source = DATASETS[name]
    for option in fields(options):
        given = getattr(options, option.name)
        if given != option.default and option.name not in source.options | COMMON:
            raise DataError(f"{option.name}: {name} has no such option, got {given!r}.")
    if options.in_memory and (options.random_crop or options.horizontal_flip):
        raise DataError(
            "in_memory keeps one cut of each image: expected neither random_crop nor "
            "horizontal_flip with it."
        )
    data = source.load(data_root, download, options)
    if options.levels:
        data = _choose_levels(data, options.levels)
    train, test, notes = data.train, data.test, dict(data.notes)
    if options.limit is not None:
        notes["limit"] = f"at most {options.limit} images of each split (seed {options.split_seed})"
        train, test = (_draw(part, options.limit, options.split_seed) for part in (train, test))
    if options.in_memory:
        train, test = train.in_memory(), test.in_memory()
    return replace(data, train=train, test=test, notes=notes)


def _choose_levels(data: ImageData, names: tuple[str, ...]) -> ImageData:
    known = [level.name for level in data.levels]
    if not set(names) <= set(known):
        raise DataError(f"levels: expected some of {', '.join(known)}, got {', '.join(names)}.")
    columns = [known.index(name) for name in names]
    train, test = (split.labels[:, columns] for split in (data.train, data.test))
    unknown = int((train[:, 0] < 0).sum() + (test[:, 0] < 0).sum())
    if unknown:
        raise DataError(
            f"levels: expected a finest level with a class for every image, got {names[0]}, "
            f"which {unknown} images lack."
        )
    return replace(
        data,
        levels=tuple(data.levels[column] for column in columns),
        train=data.train.with_labels(train),
        test=data.test.with_labels(test),
    )


def _draw(split: Split, count: int, seed: int) -> Split:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.subset(order[:count].sort().values)
