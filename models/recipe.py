"""A recipe: everything that makes a training run what it is, in one flat TOML file.

The paper's Tables 6-10 are in ``models/recipes``, one file a row; every run writes its own beside
its results.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from models.data import DATASETS, DataOptions
from models.files import write_text
from models.networks import NETWORKS, VARIANTS, Tap, taps

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
LARGEST = 2**37  # of whole numbers: PyTorch's seeds have 64 bits, and training multiplies a run's


# What is read, and what is trained: a warm start has both from the run that it starts from.
DATA_VALUES = (
    "data",
    "image_size",
    "random_crop",
    "horizontal_flip",
    "classes_csv",
    "levels",
    "test_fraction",
    "split_seed",
    "limit",
)
NETWORK_VALUES = ("network", "variant", "width", "batch_norm")


class RecipeError(Exception):
    """A recipe that cannot be read, or a value in it that cannot be; the message says which."""


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    choices: tuple[str, ...] = (),
    each: type = str,
) -> Any:
    """A field of the recipe that is also a command-line option.

    Args:
        low: the least value allowed.
        choices: the values allowed.
        each: the type of the elements, where ``default`` is a tuple.
    """
    known = {"help": help, "low": low, "choices": choices, "each": each}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class Recipe:
    """What a run trains, on what, and how. The defaults are the paper's Table 6 for CIFAR10."""

    task: str = option("classification", "what is learnt", choices=("classification", "clustering"))

    data: str = option("cifar10", "the data set", choices=tuple(DATASETS))
    image_size: int = option(0, "side of the images; 0: the data set's own", low=0)
    random_crop: bool = option(False, "train on random crops of image files")
    horizontal_flip: bool = option(False, "mirror training images of image files at random")
    classes_csv: str = option("", "file of your own classes, see docs/data.md")
    levels: tuple[str, ...] = option((), "of the labels, by name, the finest first; none: all")
    test_fraction: float = option(0.2, "kept for testing where an image folder has no test/", low=0)
    split_seed: int = option(0, "of that split, and of generated images", low=0)
    limit: int = option(0, "images of each split at most, to try things out; 0: all", low=0)

    network: str = option("lenet", "the network", choices=tuple(NETWORKS))
    variant: str = option("A", "which layers have a loss", choices=tuple(VARIANTS))
    width: float = option(1.0, "factor of all layer sizes; 2 is the paper's Double", low=0.01)
    batch_norm: bool = option(True, "batch normalisation in the network")
    imagenet: str = option("", "start from ImageNet weights: 'torchvision', or their file")

    loss_weights: tuple[float, ...] = option(
        (), "of the variant's losses, earliest layer first", low=0, each=float
    )
    after_relu: bool = option(False, "inner losses see what a layer passes on, after its ReLU")
    margin: float = option(2.0, "of the pair loss, in nats", low=0)
    gradient: str = option(
        "second",
        "of the pair loss: through KL's second argument, as in Hsu & Kira's code, or exact",
        choices=("second", "both"),
    )
    balance: str = option(
        "none",
        "of the pair loss; pairs: similar and dissimilar pairs weigh one half each",
        choices=("none", "pairs"),
    )
    precision: str = option(
        "fp32",
        "of the pair loss, on a GPU's tensor cores: the least accuracy that will do",
        choices=("fp32", "tf32x3", "bf16x3", "tf32"),
    )
    impl: str = option("auto", "of the pair loss", choices=("auto", "fused", "reference"))

    epochs: int = option(95, "how often every image is seen", low=1)
    batch_size: int = option(16, "images in a batch", low=2)
    lr: float = option(0.01, "learning rate", low=0)
    lr_factor: float = option(0.5, "what a milestone multiplies the learning rate by", low=0)
    milestones: tuple[int, ...] = option((25, 50, 75, 100), "in epochs", low=1, each=int)
    momentum: float = option(0.9, "of SGD", low=0)
    weight_decay: float = option(5e-4, "of SGD", low=0)
    seed: int = option(0, "of weights, batches and dropout", low=0)

    amp: bool = option(False, "bfloat16 autocast")
    compile: bool = option(False, "torch.compile the network")

    def __post_init__(self) -> None:
        for known in fields(self):
            _check(known, getattr(self, known.name))
        try:
            _ = self.taps
        except ValueError as error:
            raise RecipeError(str(error)) from error

    @property
    def clusters(self) -> bool:
        """Whether the network's outputs are clusters; else they are classes."""
        return self.task == "clustering"

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The pair losses, earliest layer first."""
        return taps(self.variant, self.loss_weights, after_relu=self.after_relu)

    def data_options(self, workers: int, in_memory: bool) -> DataOptions:
        """How the data is read: the recipe's part and the machine's."""
        return DataOptions(
            image_size=self.image_size or None,
            workers=workers,
            in_memory=in_memory,
            random_crop=self.random_crop,
            horizontal_flip=self.horizontal_flip,
            classes_csv=Path(self.classes_csv) if self.classes_csv else None,
            levels=self.levels,
            test_fraction=self.test_fraction,
            split_seed=self.split_seed,
            limit=self.limit or None,
        )

    def with_values(self, **values: Any) -> Recipe:
        """This recipe with other values.

        Another ``variant`` brings its own ``loss_weights`` unless they are given too. Where
        ``epochs`` changes and ``milestones`` is not given, the milestones keep their place
        in the run: 25 of 95 epochs become 5 of 19. One that comes out as 0 is left out.
        """
        if "epochs" in values and "milestones" not in values:
            _check(_FIELDS["epochs"], values["epochs"])
            moved = (round(m * values["epochs"] / self.epochs) for m in self.milestones)
            values["milestones"] = tuple(sorted(set(moved) - {0}))
        if self.clusters and values.get("variant", self.variant) != self.variant:
            own = VARIANTS.get(values["variant"], ())
            values.setdefault("loss_weights", tuple(tap.weight for tap in own))
        return replace(self, **values)

    def plain(self) -> dict[str, Any]:
        """The values with lists for tuples, as JSON and TOML have them."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}

    def save(self, path: Path) -> None:
        """Write the recipe, whole, as TOML."""
        lines = [f"{name} = {_toml(value)}\n" for name, value in self.plain().items()]
        write_text(path, "".join(lines))


def load(source: str | Path) -> Recipe:
    """The recipe of a file, or of a name in ``models/recipes``: "table7-cifar10".

    What the file leaves out has :class:`Recipe`'s default.

    Raises:
        RecipeError: there is no such recipe, or it says something that no recipe can.
    """
    path = Path(source)
    if not path.suffix:
        path = RECIPES / f"{source}.toml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
            raise RecipeError(f"recipe: expected the path of a .toml, or {known}; got {source}")
    try:
        return from_values(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecipeError) as error:
        raise RecipeError(f"{path}: {error}") from error


def from_values(values: Mapping[str, Any]) -> Recipe:
    """The inverse of :meth:`Recipe.plain`; what is left out has its default."""
    for name in values:
        if name not in _FIELDS:
            raise RecipeError(f"{name}: expected one of {', '.join(_FIELDS)}")
    plain: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return Recipe(**plain)


def _check(known: Field[Any], value: Any) -> None:
    kind, low, choices = type(known.default), known.metadata["low"], known.metadata["choices"]
    if kind is tuple:
        good = isinstance(value, tuple) and all(
            _is(known.metadata["each"], each, low) for each in value
        )
    else:
        good = _is(kind, value, low) and (not choices or value in choices)
    if not good:
        name = known.metadata["each"].__name__ + " list" if kind is tuple else kind.__name__
        expected = "one of " + ", ".join(choices) if choices else name
        bound = "" if low is None else f" of at least {low}"
        if kind is int and type(value) is int and value > LARGEST:
            bound = f" of at most {LARGEST}"
        raise RecipeError(f"{known.name}: expected {expected}{bound}, got {value!r}")


def _toml(value: Any) -> str:
    """Texts, numbers, truth values and lists of them, which JSON has nearly as TOML does: TOML
    escapes no halves of characters, and wants the delete character escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _is(kind: type, value: Any, low: float | None) -> bool:
    if type(value) is int and value > LARGEST:
        return False
    if kind is float:
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        right = right and math.isfinite(value)
    else:
        right = type(value) is kind and (kind is not str or _is_text(value))
    return right and (low is None or value >= low)


def _is_text(value: Any) -> bool:
    """Whether it can be written: a file's name in another encoding than UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


_FIELDS: dict[str, Field[Any]] = {known.name: known for known in fields(Recipe)}
RECIPE_VALUES = tuple(_FIELDS)
