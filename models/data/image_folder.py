"""Any folder of images: classes by nested folders, or by a CSV file."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from models.data.class_table import ClassTable, read_class_table
from models.data.hierarchy import hierarchy
from models.data.image_data import DataError, DataOptions, ImageData
from models.data.image_files import Listing, image_files

EXTENSIONS = (*IMG_EXTENSIONS, ".gif")


def load(data_root: Path, download: bool, options: DataOptions) -> ImageData:
    """The images under ``data_root``: in ``train/`` and ``test/``, or split by a seed.

    Classes are the folders that an image lies in (``fine/image``, ``coarse/fine/image`` or deeper),
    or come from ``options.classes_csv``: its first column is the ``path`` of an image, or a
    ``class``, the innermost folder of its images. There is nothing to download.
    """
    if not data_root.is_dir():
        raise DataError(f"--data-root: expected a folder of images, got {data_root}.")
    parts = [part for part in ("train", "test") if (data_root / part).is_dir()]
    if len(parts) == 1:
        raise DataError(
            f"{data_root}: expected train/ and test/, or neither, got {parts[0]}/ only."
        )

    table = None
    if options.classes_csv is not None:
        table = read_class_table(options.classes_csv, ("path", "class"))
    notes = {}
    if table is not None and table.key == "path":
        assert options.classes_csv is not None
        paths, fine = _listed(table, parts, options.classes_csv), list(table.fine.values())
    else:
        found = _images(data_root, parts)
        folders = [_class_folder(path, parted=bool(parts)) for path in found]
        table = table or _nested_classes(data_root, folders)
        labels = [_label(table, folder) for folder in folders]
        paths = [path for path, label in zip(found, labels, strict=True) if label is not None]
        fine = [label for label in labels if label is not None]
        if len(fine) < len(found):
            notes["left out"] = f"{len(found) - len(fine)} images of classes not in the table"
    listing = Listing(
        paths,
        torch.tensor(fine, dtype=torch.int64),
        torch.tensor([path.startswith("test/") for path in paths]) if parts else None,
    )
    data = image_files(data_root.resolve().name, data_root, listing, table.classes, options)
    return replace(data, notes=data.notes | notes)


def _listed(table: ClassTable, parts: Sequence[str], source: Path) -> list[str]:
    """The table's paths in the way in which they are written without detours, each of them once."""
    written: dict[str, str] = {}
    for line in table.fine:
        path = posixpath.normpath(line)
        if path in written:
            raise DataError(
                f"{source}: expected each file once, got {path} as {written[path]!r} and {line!r}."
            )
        if parts and path.partition("/")[0] not in parts:
            raise DataError(f"{source}: expected paths in train/ or test/, got {line!r}.")
        written[path] = line
    return list(written)


def _images(root: Path, parts: Sequence[str]) -> list[str]:
    """The image files in folders under ``root`` (or its ``parts``), as sorted relative paths."""
    paths = []
    for part in parts or ["."]:
        for folder, subfolders, names in os.walk(root / part, followlinks=True):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            images = [
                name for name in sorted(names) if has_file_allowed_extension(name, EXTENSIONS)
            ]
            if not images and not subfolders:
                raise DataError(f"{folder}: expected images, got an empty class folder.")
            paths += [(Path(folder) / name).relative_to(root).as_posix() for name in images]
    return paths


def _class_folder(path: str, *, parted: bool) -> str:
    """``train/coarse/fine/image`` to ``coarse/fine``."""
    return "/".join(PurePosixPath(path).parts[1 if parted else 0 : -1])


def _label(table: ClassTable, folder: str) -> int | None:
    return table.fine.get(folder, table.fine.get(PurePosixPath(folder).name))


def _nested_classes(root: Path, folders: Sequence[str]) -> ClassTable:
    """The classes that folders like ``coarse/fine`` stand for; the depth is the number of levels.

    A class goes by the name of its folder, or by the whole path where the name is there twice.
    """
    folders = sorted(set(folders))
    depths = {len(PurePosixPath(folder).parts): folder for folder in folders}
    if len(depths) != 1 or 0 in depths:
        examples = " and ".join(repr(folder or ".") for folder in depths.values()) or "none"
        raise DataError(
            f"{root}: expected every image in a class folder, all at the same depth; "
            f"got images in {examples}."
        )
    depth = next(iter(depths))
    # chains[i]: the folders that folders[i] lies in, itself first.
    chains = [[folder, *map(str, PurePosixPath(folder).parents)][:depth] for folder in folders]
    names = Counter(
        PurePosixPath(step).name for steps in zip(*chains, strict=True) for step in set(steps)
    )

    def name(folder: str) -> str:
        last = PurePosixPath(folder).name
        return last if names[last] == 1 else folder

    level_names = ["class"] if depth == 1 else ["fine", "coarse"]
    level_names += [f"level {i}" for i in range(3, depth + 1)]
    classes = hierarchy(
        level_names, {name(chain[0]): [name(step) for step in chain[1:]] for chain in chains}
    )
    return ClassTable("class", {folder: i for i, folder in enumerate(folders)}, classes)
