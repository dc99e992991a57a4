"""The paper's tables: which rows they have, with which recipes, and the figures printed there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from models.recipe import Recipe, load
from models.warmstart import warm_start_recipe


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        title: as the table has it, but for {network} and {batch}, the size of its batches.
        table: which of Tables 7-10 has its clustering; None for cross-entropy alone.
        width: factor of the network's sizes.
        imagenet: start from ImageNet's weights.
        values: what the clustering does otherwise than the recipe, unless it is said for all rows.
        epochs_factor: of the classification's epochs.
        ours: not in the paper.
    """

    title: str
    table: int | None = None
    width: float = 1.0
    imagenet: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    epochs_factor: int = 1
    ours: bool = False


ROWS = {
    "ce": Row("Cross-Entropy"),
    "a": Row("{network} A", 7),
    "b": Row("{network} B", 8),
    "c": Row("{network} C", 9),
    "d": Row("{network} D", 10),
    "a-double": Row("{network} A (Double)", 7, width=2.0),
    "imagenet-ce": Row("Cross-Entropy, ImageNet", imagenet=True),
    "imagenet-c": Row("{network} C, ImageNet", 9, imagenet=True),
    # A warm start has trained twice as long as the paper's cross-entropy.
    "ce-double-epochs": Row("Cross-Entropy, double epochs", epochs_factor=2, ours=True),
    # On Birdsnap34 the paper's A takes 585 steps, B-D take 4,680: not the architecture alone.
    "a-batch-128": Row(
        "{network} A, batch {batch}",
        7,
        values={"batch_size": 128, "weight_decay": 5e-4},
        ours=True,
    ),
}
TABLES = {
    1: ("ce", "a"),
    2: ("ce", "a", "b"),
    3: ("ce", "a", "b", "c", "d"),
    4: ("ce", "a-double", "c"),
    5: ("imagenet-ce", "imagenet-c"),
}
# Clustering accuracy (%), NMI, purity, classification accuracy (%). Those of Birdsnap34 are counts
# of 157 images, with a standard error of up to 4 points.
FIGURES = {
    "cifar10": {
        "ce": (None, None, None, 75.48),
        "a": (74.21, 0.55, 0.74, 75.75),
        "b": (72.66, 0.54, 0.73, 75.42),
        "c": (72.84, 0.55, 0.73, 75.11),
        "d": (74.17, 0.56, 0.74, 75.53),
    },
    "birdsnap34": {
        "ce": (None, None, None, 53.50),
        "a": (17.20, 0.39, 0.17, 50.32),
        "b": (20.38, 0.45, 0.20, 45.86),
        "c": (24.84, 0.51, 0.25, 70.70),
        "d": (22.29, 0.49, 0.22, 65.61),
        "a-double": (22.93, 0.49, 0.23, 59.24),
        "imagenet-ce": (None, None, None, 81.53),
        "imagenet-c": (24.20, 0.51, 0.24, 82.80),
    },
}
DATA_TITLES = {"cifar10": "CIFAR10", "birdsnap34": "Birdsnap34"}
# Whose recipes another data set is trained by, where it is not said: those of the small network.
LIKE_CIFAR10 = ("cifar10", "fashion-mnist", "digits")


def rows(table: int, like: str, *, extras: bool) -> list[str]:
    """The rows of one of the paper's tables; with ours at the end for ``extras``."""
    found = list(TABLES[table])
    if extras and "ce" in found:
        found.append("ce-double-epochs")
    if extras and "a" in found and like == "birdsnap34":
        found.append("a-batch-128")
    return found


def recipes(
    row: Row, like: str, overrides: dict[str, Any], seed: int
) -> tuple[Recipe | None, Recipe]:
    """The clustering (where the row has one) and the classification of a row.

    Args:
        like: whose recipes: "cifar10" or "birdsnap34".
        overrides: other values, for both; a row's own width comes on top of them.
    """
    common = dict(overrides, seed=seed, width=row.width * overrides.get("width", 1.0))
    common["imagenet"] = overrides.get("imagenet", "torchvision") if row.imagenet else ""
    classification = load(f"table6-{like}").with_values(**common)
    if row.epochs_factor != 1:
        classification = classification.with_values(
            epochs=row.epochs_factor * classification.epochs
        )
    if row.table is None:
        return None, classification
    clustering = load(f"table{row.table}-{like}").with_values(**(row.values | common))
    return clustering, warm_start_recipe(classification, clustering)
