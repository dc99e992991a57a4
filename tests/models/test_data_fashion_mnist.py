"""Fashion-MNIST in the layouts it is found in."""

from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from models import data
from models.data import DataError, fashion_mnist
from tests.models.data_files import idx_bytes, write_fashion_mnist


@pytest.fixture
def no_debian_package(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path / "debian"


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


def test_a_failed_download_is_no_traceback(tmp_path, no_debian_package, monkeypatch):
    def download(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(FashionMNIST, "download", download)
    with pytest.raises(DataError, match="could not be downloaded into .*: no network"):
        data.load("fashion-mnist", tmp_path, download=True)


def test_kinds_of_clothes(tmp_path, no_debian_package):
    write_fashion_mnist(tmp_path / "root", packed=False)
    loaded = data.load("fashion-mnist", tmp_path / "root")
    assert loaded.levels[1].classes == ("tops", "trousers", "dresses", "shoes", "bags")
    kinds = dict(loaded.train.labels.tolist())
    assert [kinds[article] for article in range(10)] == [0, 1, 0, 2, 0, 3, 0, 3, 4, 3]
