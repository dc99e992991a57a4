"""Loaders on tiny sets in the real formats, and the paper's YUV preprocessing."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, FashionMNIST

from models import data
from models.data import DataError, MemorySplit, Split, cifar10, fashion_mnist

SIZES = {"train": 30, "t10k": 20}


def idx_bytes(array: np.ndarray) -> bytes:
    """The idx format: magic number, sizes (big-endian), pixels."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion_mnist(folder: Path, *, packed: bool) -> dict[str, np.ndarray]:
    """A small Fashion-MNIST of random pixels; returns the arrays by file name."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in SIZES.items():
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(n) % 10).astype(np.uint8)
    for name, array in arrays.items():
        if packed:
            with gzip.open(folder / f"{name}.gz", "wb") as file:
                file.write(idx_bytes(array))
        else:
            (folder / name).write_bytes(idx_bytes(array))
    return arrays


@pytest.fixture
def no_debian_package(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path / "debian"


def write_cifar10(root: Path, monkeypatch) -> np.ndarray:
    """A small CIFAR10 in the python version's layout, its checksums made known to torchvision."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: object) -> str:
        encoded = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(encoded)
        return hashlib.md5(encoded).hexdigest()

    def write_batch(name: str) -> list[str]:
        pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
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


# Digits


def test_digits():
    digits = data.load("digits", Path("nowhere"))
    assert digits.in_shape == (1, 16, 16)
    assert (len(digits.train), len(digits.test)) == (1347, 450)
    assert digits.train.images.dtype == torch.float32
    assert digits.train.labels.dtype == torch.int64
    # Stratified: every class has its tenth of the test set.
    assert torch.bincount(digits.test.labels[:, 0]).min() >= 42
    assert abs(float(digits.train.images.mean())) < 1e-5
    assert float(digits.train.images.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_digits_are_always_split_alike():
    first, second = (data.load("digits", Path("nowhere")) for _ in range(2))
    torch.testing.assert_close(first.test.images, second.test.images, rtol=0, atol=0)


# Fashion-MNIST


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("folder", ["FashionMNIST/raw", ".", "../debian"])
def test_fashion_mnist_is_found(tmp_path, no_debian_package, folder, packed):
    root = tmp_path / "root"
    root.mkdir()
    where = root / folder if folder != "." else tmp_path / "root" / "plain"
    arrays = write_fashion_mnist(where, packed=packed)
    loaded = data.load("fashion-mnist", where if folder == "." else root)
    assert loaded.in_shape == (1, 28, 28)
    for split, part in ((loaded.train, "train"), (loaded.test, "t10k")):
        pixels = arrays[f"{part}-images-idx3-ubyte"] / 255.0
        training = arrays["train-images-idx3-ubyte"] / 255.0
        expected = (pixels - training.mean()) / training.std()
        np.testing.assert_allclose(split.images[:, 0].numpy(), expected, atol=1e-5)
        np.testing.assert_array_equal(
            split.labels[:, 0].numpy(), arrays[f"{part}-labels-idx1-ubyte"]
        )


def test_missing_fashion_mnist_says_how_to_get_it(tmp_path, no_debian_package):
    with pytest.raises(DataError) as error:
        data.load("fashion-mnist", tmp_path / "root")
    message = str(error.value)
    assert "apt-get install dataset-fashion-mnist" in message
    assert "--download" in message
    assert str(tmp_path / "root" / "FashionMNIST" / "raw") in message


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keep", [0, 3, 400])
def test_damaged_fashion_mnist_is_named(tmp_path, no_debian_package, packed, keep):
    write_fashion_mnist(tmp_path / "root", packed=packed)
    name = "t10k-images-idx3-ubyte" + (".gz" if packed else "")
    file = tmp_path / "root" / name
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"{name} is damaged"):
        data.load("fashion-mnist", tmp_path / "root")


def test_flipped_bits_in_a_gzip_are_noticed(tmp_path, no_debian_package):
    write_fashion_mnist(tmp_path / "root", packed=True)
    file = tmp_path / "root" / "train-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        data.load("fashion-mnist", tmp_path / "root")


def test_another_data_set_in_the_same_files_is_refused(tmp_path, no_debian_package):
    write_fashion_mnist(tmp_path / "root", packed=False)
    labels = (np.arange(30) % 26).astype(np.uint8)
    (tmp_path / "root" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(DataError, match="not Fashion-MNIST"):
        data.load("fashion-mnist", tmp_path / "root")


def test_download_goes_through_torchvision(tmp_path, no_debian_package, monkeypatch):
    def download(self):
        write_fashion_mnist(Path(self.raw_folder), packed=False)

    monkeypatch.setattr(FashionMNIST, "download", download)
    assert len(data.load("fashion-mnist", tmp_path / "root", download=True).train) == 30


@pytest.mark.parametrize(
    ("name", "dataset"), [("fashion-mnist", FashionMNIST), ("cifar10", CIFAR10)]
)
def test_a_failed_download_is_no_traceback(tmp_path, no_debian_package, monkeypatch, name, dataset):
    def download(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(dataset, "download", download)
    with pytest.raises(DataError, match="could not be downloaded into .*: no network"):
        data.load(name, tmp_path, download=True)


# CIFAR10


def test_cifar10(tmp_path, monkeypatch):
    pixels = write_cifar10(tmp_path, monkeypatch)
    loaded = data.load("cifar10", tmp_path)
    assert loaded.in_shape == (3, 32, 32)
    assert (len(loaded.train), len(loaded.test)) == (50, 10)
    assert loaded.classes[3] == "cat"

    # The definition, image by image, in float64.
    r, g, b = (pixels.reshape(-1, 3, 32, 32).astype(np.float64) / 255).transpose(1, 0, 2, 3)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    u, v = (b - y) * 0.436 / (1 - 0.114), (r - y) * 0.615 / (1 - 0.299)
    train = slice(0, 50)
    expected = np.stack(
        [
            np.stack([(image - image.mean()) / image.std() for image in y]),
            (u - u[train].mean()) / u[train].std(),
            (v - v[train].mean()) / v[train].std(),
        ],
        axis=1,
    )
    np.testing.assert_allclose(loaded.train.images.numpy(), expected[train], atol=2e-4)
    np.testing.assert_allclose(loaded.test.images.numpy(), expected[50:], atol=2e-4)


def test_a_changed_cifar10_is_refused(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    (tmp_path / CIFAR10.base_folder / "data_batch_3").write_bytes(b"")
    with pytest.raises(DataError, match="not found whole"):
        data.load("cifar10", tmp_path)


def test_missing_cifar10_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match="--download"):
        data.load("cifar10", tmp_path)


def test_yuv_of_grey_and_primaries():
    colours = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0, 0], [0, 0, 1.0]]).view(3, 3, 1, 1)
    yuv = cifar10.rgb_to_yuv(colours).view(3, 3)
    expected = torch.tensor([[0.5, 0, 0], [0.299, -0.147, 0.615], [0.114, 0.436, -0.100]])
    torch.testing.assert_close(yuv, expected, rtol=0, atol=2e-4)


def test_an_image_of_one_brightness_stays_finite():
    images = torch.full((1, 3, 4, 4), 0.25)
    normalised = cifar10.normalise_yuv(images, torch.zeros(2), torch.ones(2))
    assert float(normalised[:, 0].abs().max()) == 0
    assert normalised.isfinite().all()


# Batches


def split_of(n: int) -> Split:
    return MemorySplit(torch.arange(n).view(n, 1, 1, 1).float(), torch.arange(n).view(n, 1))


def test_batches_hold_every_row_once():
    torch.manual_seed(0)
    batches = list(split_of(10).shuffled_batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    rows = torch.cat([labels[:, 0] for _, labels in batches])
    assert sorted(rows.tolist()) == list(range(10)) != rows.tolist()
    for images, labels in batches:
        torch.testing.assert_close(images.flatten(), labels.flatten().float())


def test_a_last_batch_of_one_row_is_left_out():
    assert [len(labels) for _, labels in split_of(9).shuffled_batches(4)] == [4, 4]
