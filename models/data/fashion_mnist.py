"""Fashion-MNIST from torchvision's layout or from Debian's package, whichever is found."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from pathlib import Path

from torch import Tensor
from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from models.data.hierarchy import hierarchy
from models.data.image_data import DataError, DataOptions, ImageData, MemorySplit, standardise

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# By what it is worn on, and so by its outline.
CLASSES = {
    "T-shirt/top": ["tops"],
    "Trouser": ["trousers"],
    "Pullover": ["tops"],
    "Dress": ["dresses"],
    "Coat": ["tops"],
    "Sandal": ["shoes"],
    "Shirt": ["tops"],
    "Sneaker": ["shoes"],
    "Bag": ["bags"],
    "Ankle boot": ["shoes"],
}


def load(data_root: Path, download: bool, options: DataOptions) -> ImageData:
    """The 60000 training and 10000 test images, 1 x 28 x 28.

    Looks for the four idx files, gzipped or not, in ``data_root/FashionMNIST/raw`` (torchvision's
    layout), in ``data_root`` itself, and where Debian's package puts them.
    """
    folder = _find(data_root)
    if folder is None and download:
        _download(data_root)
        folder = _find(data_root)
    if folder is None:
        looked_in = "".join(f"\n  {place}" for place in _places(data_root))
        raise DataError(
            f"Fashion-MNIST was not found. Looked for its four idx files in{looked_in}\n"
            "Get it in one of these ways:\n"
            "  apt-get install dataset-fashion-mnist        on Debian and Ubuntu, as root\n"
            f"  add --download                               by torchvision, into {data_root}\n"
            "or name the folder that holds the files with --data-root."
        )
    clothes = hierarchy(("article", "kind"), CLASSES)
    train_images, train_labels = _read_split(folder, "train")
    test_images, test_labels = _read_split(folder, "t10k")
    train_images, test_images, note = standardise(train_images, test_images)
    return ImageData(
        title="Fashion-MNIST",
        levels=clothes.levels,
        train=MemorySplit(train_images, clothes.labels(train_labels)),
        test=MemorySplit(test_images, clothes.labels(test_labels)),
        notes={
            "source": str(folder),
            "split": f"{len(train_labels)} training and {len(test_labels)} test images",
            "normalisation": note,
        },
    )


def _places(data_root: Path) -> list[Path]:
    return [data_root / "FashionMNIST" / "raw", data_root, DEBIAN_FOLDER]


def _find(data_root: Path) -> Path | None:
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images", "labels")]
    for folder in _places(data_root):
        if all(_idx_file(folder, name) for name in names):
            return folder
    return None


def _idx_file(folder: Path, name: str) -> Path | None:
    stem = folder / f"{name}-idx{3 if name.endswith('images') else 1}-ubyte"
    for path in (stem, stem.with_name(f"{stem.name}.gz")):
        if path.is_file():
            return path
    return None


def _download(data_root: Path) -> None:
    try:
        FashionMNIST(str(data_root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Fashion-MNIST could not be downloaded into {data_root}: {error}"
        ) from error


def _read_split(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28) in [0, 1] and labels (n,) of ``part`` ("train" or "t10k")."""
    images, labels = _read_idx(folder, f"{part}-images"), _read_idx(folder, f"{part}-labels")
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1 or int(labels.max()) > 9:
        raise DataError(
            f"The {part} files in {folder} are not Fashion-MNIST: images {tuple(images.shape)}, "
            f"labels {tuple(labels.shape)} up to {int(labels.max())}."
        )
    return images.unsqueeze(1).float() / 255, labels


def _read_idx(folder: Path, name: str) -> Tensor:
    path = _idx_file(folder, name)
    assert path is not None  # _find has seen it
    try:
        if path.suffix != ".gz":
            return read_sn3_pascalvincent_tensor(str(path))
        # torchvision's reader takes a plain file only.
        with gzip.open(path) as packed, tempfile.NamedTemporaryFile() as plain:
            shutil.copyfileobj(packed, plain)
            plain.flush()
            return read_sn3_pascalvincent_tensor(plain.name)
    except (OSError, EOFError, zlib.error, AssertionError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error or 'wrong length'}); get it again.") from error
