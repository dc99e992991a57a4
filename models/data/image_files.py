"""From a list of image files with their classes to a data set: checked, split, labelled."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.data.file_check import check, summarise
from models.data.file_split import FileSplit
from models.data.hierarchy import Hierarchy
from models.data.image_data import DataError, DataOptions, ImageData
from models.data.transforms import NORMALISATION, resized_side

IMAGE_SIZE = 224  # what AlexNet was made for
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """Image files, relative to a folder: ``fine`` (n,) are their classes on the finest level, and
    ``is_test`` (n,) says which are for testing; None: to be drawn."""

    paths: list[str]
    fine: Tensor
    is_test: Tensor | None


def image_files(
    title: str, root: Path, listing: Listing, classes: Hierarchy, options: DataOptions
) -> ImageData:
    """The data set of all files of ``listing`` that can be read.

    Raises:
        DataError: a class has no training image left, or there is no test image.
    """
    findings = check(root, listing.paths)
    remarks = summarise(listing.paths, findings)
    for what, names in remarks.items():
        log.warning("%s, %s: %s", title, what, names)
    usable = torch.tensor([finding.usable for finding in findings], dtype=torch.bool)
    fine = listing.fine[usable]
    if listing.is_test is None:
        is_test = draw_test_rows(fine, options.test_fraction, options.split_seed)
        how = f"{options.test_fraction:.0%} of each class for testing, seed {options.split_seed}"
    else:
        is_test = listing.is_test[usable]
        how = "as given"
    _refuse_empty(title, classes, fine, is_test, remarks)

    size = options.image_size or IMAGE_SIZE
    files = FileSplit(
        paths=tuple(
            root / path for path, f in zip(listing.paths, findings, strict=True) if f.usable
        ),
        labels=classes.labels(fine),
        size=size,
        workers=options.workers,
        random_crop=options.random_crop,
        horizontal_flip=options.horizontal_flip,
    )
    train, test = (files.subset(part.nonzero()[:, 0]) for part in (~is_test, is_test))
    return ImageData(
        title=title,
        levels=classes.levels,
        train=train,
        test=test,
        notes={
            "source": str(root),
            "split": f"{len(train)} training and {len(test)} test images ({how})",
            **remarks,
            **_untested(classes, fine[is_test]),
            "input": f"RGB, shorter side {resized_side(size)}, {_crop(options)} of {size} x {size}",
            "normalisation": NORMALISATION,
        },
    )


def draw_test_rows(fine: Tensor, fraction: float, seed: int) -> Tensor:
    """Which rows are for testing, (n,) bool: ``fraction`` of each class, at least one of two."""
    generator = torch.Generator().manual_seed(seed)
    is_test = torch.zeros(len(fine), dtype=torch.bool)
    for label in fine.unique():
        rows = (fine == label).nonzero()[:, 0]
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        is_test[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return is_test


def _refuse_empty(
    title: str, classes: Hierarchy, fine: Tensor, is_test: Tensor, remarks: dict[str, str]
) -> None:
    names = classes.levels[0].classes
    counts = torch.bincount(fine[~is_test], minlength=len(names))
    empty = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    skipped = f" Skipped: {remarks['skipped']}." if "skipped" in remarks else ""
    if empty:
        raise DataError(
            f"{title}: no training image for {len(empty)} of {len(names)} classes "
            f"({', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}).{skipped}"
        )
    if not is_test.any():
        raise DataError(f"{title}: no test image.{skipped}")


def _untested(classes: Hierarchy, fine: Tensor) -> dict[str, str]:
    """A note of the classes that have no test image, if any."""
    seen = set(fine.tolist())
    names = [name for i, name in enumerate(classes.levels[0].classes) if i not in seen]
    return {"classes without a test image": ", ".join(names)} if names else {}


def _crop(options: DataOptions) -> str:
    crop = "training: random crop" if options.random_crop else "centre crop"
    return crop + (" and mirroring" if options.horizontal_flip else "")
