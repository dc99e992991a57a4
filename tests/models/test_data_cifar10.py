"""CIFAR10 through torchvision, the paper's YUV preprocessing and its statistics."""

import json

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from models import data
from models.data import DataError, cifar10
from tests.models.data_files import write_cifar10


def test_cifar10(tmp_path, monkeypatch):
    pixels = write_cifar10(tmp_path, monkeypatch)
    monkeypatch.setattr(cifar10, "CHUNK", 7)  # no divisor of 50 or 10
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
    colours = torch.tensor([[127.5, 127.5, 127.5], [255, 0, 0], [0, 0, 255]]).view(3, 3, 1, 1)
    yuv = cifar10.rgb_to_yuv(colours).view(3, 3)
    expected = torch.tensor([[0.5, 0, 0], [0.299, -0.147, 0.615], [0.114, 0.436, -0.100]])
    torch.testing.assert_close(yuv, expected, rtol=0, atol=2e-4)


def test_an_image_of_one_brightness_stays_finite():
    images = torch.full((1, 3, 4, 4), 0.25)
    normalised = cifar10.normalise_yuv(images, torch.zeros(2), torch.ones(2))
    assert float(normalised[:, 0].abs().max()) == 0
    assert normalised.isfinite().all()


def test_animals_and_vehicles(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    loaded = data.load("cifar10", tmp_path)
    kinds = dict(loaded.train.labels.tolist())
    names = {loaded.classes[fine]: loaded.levels[1].classes[kind] for fine, kind in kinds.items()}
    animals = {name for name, kind in names.items() if kind == "animal"}
    assert animals == {"bird", "cat", "deer", "dog", "frog", "horse"}
    assert {name for name in names if name not in animals} == set(cifar10.VEHICLES)


def test_a_failed_download_is_no_traceback(tmp_path, monkeypatch):
    def download(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(CIFAR10, "download", download)
    with pytest.raises(DataError, match="could not be downloaded into .*: no network"):
        data.load("cifar10", tmp_path, download=True)


# The statistics of U and V


@pytest.fixture
def statistics_file(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    data.load("cifar10", tmp_path)
    return tmp_path / CIFAR10.base_folder / cifar10.STATISTICS


def test_statistics_are_read_when_they_belong_to_the_data(tmp_path, statistics_file):
    before = data.load("cifar10", tmp_path)
    content = json.loads(statistics_file.read_text())
    statistics_file.write_text(json.dumps({**content, "mean": [1.0, 1.0]}))
    after = data.load("cifar10", tmp_path)
    shift = before.train.images - after.train.images
    expected = (1 - torch.tensor(content["mean"])) / torch.tensor(content["std"])
    torch.testing.assert_close(shift[0, 1:, 0, 0], expected)
    assert float(shift[:, 0].abs().max()) == 0


def test_statistics_of_other_data_are_computed_anew(tmp_path, statistics_file, monkeypatch):
    old = json.loads(statistics_file.read_text())
    write_cifar10(tmp_path, monkeypatch, seed=1)
    loaded = data.load("cifar10", tmp_path)
    new = json.loads(statistics_file.read_text())
    assert new["checksums"] != old["checksums"]
    assert new["mean"] != old["mean"]
    assert loaded.train.images[:, 1:].mean().abs() < 1e-5


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"checksums": 3}'])
def test_a_damaged_statistics_file_is_replaced(tmp_path, statistics_file, content):
    whole = statistics_file.read_text()
    statistics_file.write_text(content)
    data.load("cifar10", tmp_path)
    assert statistics_file.read_text() == whole


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refuse(path, text):
        raise PermissionError(path)

    write_cifar10(tmp_path, monkeypatch)
    monkeypatch.setattr(cifar10, "write_text", refuse)
    assert len(data.load("cifar10", tmp_path).train) == 50
