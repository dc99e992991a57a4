"""Tiny data sets in the real file formats."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10

FASHION_MNIST_SIZES = {"train": 30, "t10k": 20}


def idx_bytes(array: np.ndarray) -> bytes:
    """The idx format: magic number, sizes (big-endian), pixels."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion_mnist(folder: Path, *, packed: bool) -> dict[str, np.ndarray]:
    """A small Fashion-MNIST of random pixels; returns the arrays by file name."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in FASHION_MNIST_SIZES.items():
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(n) % 10).astype(np.uint8)
    for name, array in arrays.items():
        if packed:
            with gzip.open(folder / f"{name}.gz", "wb") as file:
                file.write(idx_bytes(array))
        else:
            (folder / name).write_bytes(idx_bytes(array))
    return arrays


def write_cifar10(root: Path, monkeypatch, seed: int = 0) -> np.ndarray:
    """A small CIFAR10 in the python version's layout, its checksums made known to torchvision."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)

    def write(name: str, content: object) -> str:
        encoded = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(encoded)
        return hashlib.md5(encoded).hexdigest()

    def write_batch(name: str) -> list[str]:
        pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        pixels[:, :1024] //= 2  # less red: the mean of U and V is not 0
        batches.append(pixels)
        labels = [*range(10)]
        return [name, write(name, {"data": pixels, "labels": labels, "batch_label": name})]

    batches: list[np.ndarray] = []
    names = [f"data_batch_{i}" for i in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", [write_batch(name) for name in names])
    monkeypatch.setattr(CIFAR10, "test_list", [write_batch("test_batch")])
    classes = ["airplane", "automobile", "bird", "cat", "deer"]
    classes += ["dog", "frog", "horse", "ship", "truck"]
    meta = {"filename": "batches.meta", "key": "label_names"}
    meta["md5"] = write("batches.meta", {"label_names": classes})
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return np.concatenate(batches)


def write_image(path: Path, colour: int = 100, *, mode: str = "RGB", kind: str = "JPEG") -> None:
    """An image of one colour (the first channel is ``colour``), wider than high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {
        "RGB": (colour, 50, 200),
        "CMYK": (colour, 50, 200, 10),
        "RGBA": (colour, 50, 200, 9),
    }
    Image.new(mode, (40, 32), channels.get(mode, colour)).save(path, kind)


def write_page(path: Path) -> None:
    """What a dead link often leaves: a web page under an image's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n<!DOCTYPE html><html><body>This photo is no longer available</body></html>")


def write_half(path: Path) -> None:
    """A download that broke off: the header is whole, the last rows are missing."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-1500])


# Species of the release with the folders of images.txt, whose case differs from species.txt.
BIRDS = {
    "1": ("Cooper's Hawk", "Accipiter cooperii", "Coopers_Hawk"),
    "4": ("Golden Eagle", "Aquila chrysaetos", "Golden_Eagle"),
    "70": ("Great Egret", "Ardea alba", "Great_Egret"),
}
PARTS = ("back", "beak", "belly", "breast", "crown", "forehead", "left_cheek", "left_eye")
PARTS += ("left_leg", "left_wing", "nape", "right_cheek", "right_eye", "right_leg", "right_wing")
PARTS += ("tail", "throat")


def write_birdsnap(root: Path, images: Path | None = None) -> Path:
    """The release with three species of five images each, one of them for testing.

    Returns the folder of the images.
    """
    root.mkdir(parents=True, exist_ok=True)
    images = images or root / "download" / "images"
    species = ["id\tcommon\tscientific\tdir"]
    columns = ["url", "md5", "path", "species_id", "bb_x1", "bb_y1", "bb_x2", "bb_y2"]
    listed = ["\t".join([*columns, *(f"{part}_{axis}" for part in PARTS for axis in "xy")])]
    tests = ["path"]
    for number, (common, scientific, folder) in BIRDS.items():
        species.append(f"{number}\t{common}\t{scientific}\t{folder.lower()}")
        for i in range(5):
            path = f"{folder}/{100 * int(number) + i:04}.jpg"
            write_image(images / path, colour=int(number))
            md5 = hashlib.md5((images / path).read_bytes()).hexdigest()
            box = ["1", "1", "30", "30", *["null"] * 2 * len(PARTS)]
            # The list is not quoted: a quotation mark is a character.
            listed.append("\t".join([f'"http://localhost/{i}_o.jpg', md5, path, number, *box]))
        tests.append(path)
    for name, lines in (("species", species), ("images", listed), ("test_images", tests)):
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return images
