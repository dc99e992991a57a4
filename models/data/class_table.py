"""CSV files of classes: what is classified (an image, a species, a class), and its classes.

The first line names the columns, the levels from fine to coarse: ``path,species,family``. Where
the first column is ``class``, that is the finest level itself: ``class,family``. An empty cell is
an unknown class, which the losses ignore; only the finest class must be known.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from models.data.hierarchy import Hierarchy, hierarchy
from models.data.image_data import DataError


@dataclass(frozen=True)
class ClassTable:
    """``key`` is the name of the first column; ``fine`` the finest class of what stands there."""

    key: str
    fine: dict[str, int]
    classes: Hierarchy


def read_class_table(path: Path, keys: tuple[str, ...]) -> ClassTable:
    """Read a table whose first column has one of the names ``keys``.

    Raises:
        DataError: it cannot be read, or contradicts itself; the message names the line.
    """
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"The class table {path} cannot be read: {error}") from error
    header = [name.strip() for name in lines[0][1]] if lines else []
    first_level = 0 if header[:1] == ["class"] else 1
    if len(header) <= first_level or header[0] not in keys or not all(header):
        wanted = " or ".join(
            f"'{key},<coarse>,...'" if key == "class" else f"'{key},<fine>,<coarse>,...'"
            for key in keys
        )
        raise DataError(f"{path}: expected a first line like {wanted}, got {','.join(header)!r}.")

    coarser: dict[str, list[str]] = {}  # fine class -> its coarser classes
    fine: dict[str, str] = {}
    for number, row in lines[1:]:
        where = f"{path}, line {number}"
        cells = [cell.strip() for cell in row]
        if len(cells) != len(header):
            raise DataError(f"{where}: expected {len(header)} columns, got {len(cells)}.")
        key, (name, *others) = cells[0], cells[first_level:]
        if not key or not name:
            needed = " and a ".join(header[: first_level + 1])
            raise DataError(f"{where}: expected a {needed}, got an empty cell.")
        if key in fine:
            raise DataError(f"{where}: {header[0]} {key!r} is there twice.")
        if coarser.setdefault(name, others) != others:
            raise DataError(
                f"{where}: {name!r} is in {', '.join(others)!r} here and in "
                f"{', '.join(coarser[name])!r} before; a class has one class on each coarser level."
            )
        fine[key] = name
    if not fine:
        raise DataError(f"{path}: expected at least one class, got a first line only.")
    classes = hierarchy(header[first_level:], coarser)
    numbers = {name: i for i, name in enumerate(classes.levels[0].classes)}
    return ClassTable(header[0], {key: numbers[name] for key, name in fine.items()}, classes)
