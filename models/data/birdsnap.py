"""Birdsnap (Berg et al., CVPR 2014): 500 species of North American birds, in the release's layout.

``birdsnap34`` is the paper's subset: 34 species of as many subfamilies, in 18 families. Its list,
``birdsnap34.csv``, is very probably the authors' own, but unconfirmed: it was published in 2017
with a third-party reimplementation, and has the paper's numbers of classes on both levels.
``birdsnap_species.csv`` classifies all 500 species after the American Ornithological Society's
Check-list of North American Birds, 58th supplement (Chesser et al., The Auk 134, 2017).
"""

from __future__ import annotations

import csv
import logging
from dataclasses import replace
from pathlib import Path

import torch

from models.data.class_table import ClassTable, read_class_table
from models.data.image_data import DataError, DataOptions, ImageData
from models.data.image_files import Listing, image_files

HERE = Path(__file__).parent
SPECIES = HERE / "birdsnap_species.csv"
SPECIES_34 = HERE / "birdsnap34.csv"
FILES = ("species.txt", "images.txt", "test_images.txt")
log = logging.getLogger(__name__)


def load(data_root: Path, download: bool, options: DataOptions) -> ImageData:
    """All 500 species, on the levels of the scientific classification."""
    return _load("Birdsnap", data_root, options, SPECIES)


def load_34(data_root: Path, download: bool, options: DataOptions) -> ImageData:
    """Birdsnap34, or the user's own choice of species (``options.classes_csv``).

    The table's first column is ``species_id``; several species may share a class.
    """
    return _load("Birdsnap34", data_root, options, options.classes_csv or SPECIES_34)


def _load(title: str, data_root: Path, options: DataOptions, classes: Path) -> ImageData:
    release = _find(data_root)
    table = read_class_table(classes, ("species_id",))
    _refuse_unknown_species(release, table, classes)
    images = _images_folder(release)
    # Folders by their name in lower case: images.txt has Coopers_Hawk, species.txt coopers_hawk,
    # and copies of the images follow one or the other.
    folders = {folder.name.lower(): folder.name for folder in images.iterdir() if folder.is_dir()}

    tests = [row["path"] for row in _rows(release / "test_images.txt", "path")]
    for_testing = {path.lower() for path in tests}
    listed = _rows(release / "images.txt", "path", "species_id")
    known = {row["path"].lower() for row in listed}
    unlisted = [path for path in tests if path.lower() not in known]
    if unlisted:
        log.warning("%s, test images that are not in images.txt: %s", title, _first(unlisted))
    rows = [row for row in listed if row["species_id"] in table.fine]
    listing = Listing(
        paths=[_on_disk(row["path"], folders) for row in rows],
        fine=torch.tensor([table.fine[row["species_id"]] for row in rows], dtype=torch.int64),
        is_test=torch.tensor(
            [row["path"].lower() in for_testing for row in rows], dtype=torch.bool
        ),
    )
    assert listing.is_test is not None
    data = image_files(title, images, listing, table.classes, options)
    counts = f"{int((~listing.is_test).sum())} + {int(listing.is_test.sum())}"
    found = f"{len(data.train)} training and {len(data.test)} test images found of {counts} listed"
    notes = {"split": found, "class table": classes.name}
    if unlisted:
        notes["test images that are not in images.txt"] = _first(unlisted)
    return replace(data, notes=data.notes | notes)


def _find(data_root: Path) -> Path:
    places = [data_root / "birdsnap", data_root]
    for place in places:
        if all((place / name).is_file() for name in FILES):
            return place
    looked_in = "".join(f"\n  {place}" for place in places)
    raise DataError(
        f"Birdsnap was not found. Looked for {', '.join(FILES)} in{looked_in}\n"
        "Its authors give it out at http://thomasberg.org/ (birdsnap.tgz, with a program that "
        "fetches the images into download/images; many links are dead by now, which is reported "
        "but no error). Unpack it, run that program, and name the folder with --data-root."
    )


def _images_folder(release: Path) -> Path:
    places = [release / "download" / "images", release / "images"]
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f"{release} has Birdsnap's lists but no images: expected them in "
        f"{places[0]} or {places[1]}."
    )


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of one of the release's files: separated by tabs, with a header, unquoted."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{path}: expected the columns {', '.join(columns)}, got {reader.fieldnames}."
            )
        return [row for row in reader if all(row[name] for name in columns)]


def _refuse_unknown_species(release: Path, table: ClassTable, classes: Path) -> None:
    known = {row["id"] for row in _rows(release / "species.txt", "id")}
    unknown = [species for species in table.fine if species not in known]
    if unknown:
        raise DataError(
            f"{classes}: expected ids of {release / 'species.txt'} as species_id, got "
            f"{', '.join(unknown[:5])}."
        )


def _first(paths: list[str]) -> str:
    return f"{len(paths)} ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''})"


def _on_disk(path: str, folders: dict[str, str]) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folders.get(folder.lower(), folder)}/{name}"
