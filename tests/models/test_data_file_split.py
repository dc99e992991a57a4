"""Batches from image files: the same with any number of workers, and what is said when one dies."""

import os
import signal
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from models.data import DataError, file_split, worker_failures
from models.data.file_split import FileSplit
from models.data.transforms import IMAGENET_MEAN, IMAGENET_STD, cut
from tests.models.data_files import write_image


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Nine noisy images, 48 x 40, the first channel of image i about 20 i."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(9):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        pixels[:, :, 0] = 20 * i
        Image.fromarray(pixels).save(root / f"{i}.png")
    paths = tuple(root / f"{i}.png" for i in range(9))
    labels = torch.stack([torch.arange(9), torch.arange(9) // 3], dim=1)
    return FileSplit(paths, labels, size=28, workers=0)


def first_channel(images):
    """The image that each row of a batch shows."""
    values = images[:, 0].mean((1, 2)) * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    return (values * 255 / 20).round().long()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_in_order(split, workers):
    batches = list(replace(split, workers=workers).batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 1]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert images.shape == (9, *split.image_shape) == (9, 3, 28, 28)
    assert images.dtype == torch.float32
    assert torch.equal(labels, split.labels)
    assert first_channel(images).tolist() == list(range(9))


def test_the_shorter_side_is_resized_and_the_centre_cut(split):
    images, _ = next(split.batches(1))
    with Image.open(split.paths[0]) as image:  # 48 x 40 to 38 x 32
        resized = image.resize((38, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((5, 2, 33, 30)), dtype=np.float32) / 255
    expected = (expected - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(images[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def epoch(split, seed):
    torch.manual_seed(seed)
    images, labels = zip(*split.shuffled_batches(4), strict=True)
    return torch.cat(images), torch.cat(labels), torch.rand(3)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_epoch_follows_from_the_seed_alone(split, workers):
    split = replace(split, random_crop=True, horizontal_flip=True)
    images, labels, later = epoch(split, 0)
    again = epoch(replace(split, workers=workers), 0)
    torch.testing.assert_close(again, (images, labels, later), rtol=0, atol=0)
    assert sorted(labels[:, 0].tolist()) != labels[:, 0].tolist()
    assert first_channel(images).tolist() == labels[:, 0].tolist()
    assert len(labels) == 8  # the ninth would be alone


def test_every_epoch_cuts_anew_and_evaluation_does_not(split):
    split = replace(split, random_crop=True, horizontal_flip=True)

    def by_image(seed):
        images, labels, _ = epoch(split, seed)
        return dict(zip(labels[:, 0].tolist(), images, strict=True))

    first, second = by_image(0), by_image(1)
    both = first.keys() & second.keys()
    assert sum(not torch.equal(first[i], second[i]) for i in both) >= len(both) - 1
    torch.manual_seed(1)
    torch.testing.assert_close(next(split.batches(9)), next(replace(split).batches(9)))


def test_each_image_is_cut_in_its_own_way(split):
    alike = replace(split, paths=split.paths[:1] * 9, random_crop=True, horizontal_flip=True)
    images, _, _ = epoch(alike, 0)
    assert len(images.flatten(1).unique(dim=0)) >= 6


def test_evaluation_draws_no_random_number(split):
    state = torch.get_rng_state()
    list(split.batches(4))
    assert torch.equal(torch.get_rng_state(), state)


def test_random_transforms_reach_all_places():
    image = Image.fromarray(np.arange(32, dtype=np.uint8)[None].repeat(32, 0)).convert("RGB")
    torch.manual_seed(0)
    cuts = [cut(28, random_crop=True, horizontal_flip=True)(image) for _ in range(200)]
    corners = {int(image[0, 0, 0]) for image in cuts}
    assert corners == {0, 1, 2, 3, 4, 27, 28, 29, 30, 31}


def test_in_memory_is_the_same(split):
    memory = split.in_memory()
    assert memory.images.dtype == torch.uint8
    assert memory.subset(torch.tensor([7, 2])).paths == (split.paths[7], split.paths[2])
    torch.testing.assert_close(next(memory.batches(9)), next(split.batches(9)), rtol=0, atol=0)


def test_no_batch_is_kept_beside_what_is_in_memory(split, monkeypatch):
    read, kept = [], []

    def watched(self, batches, seed):
        for rows in batches:
            kept.append(sum(batch() is not None for batch in read))
            images = torch.zeros(len(rows), 3, 28, 28, dtype=torch.uint8)
            read.append(weakref.ref(images))
            yield images

    monkeypatch.setattr(FileSplit, "_bytes", watched)
    many = replace(split, paths=split.paths * 100, labels=split.labels.repeat(100, 1))
    assert len(many.in_memory()) == 900
    assert len(kept) > 10
    assert max(kept) <= 1


def test_a_subset(split):
    images, labels = next(split.subset(torch.tensor([7, 2])).batches(2))
    assert labels.tolist() == [[7, 2], [2, 0]]
    assert first_channel(images).tolist() == [7, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanishes_is_named(split, tmp_path, workers):
    write_image(tmp_path / "a.png", kind="PNG")
    paths = (split.paths[0], tmp_path / "gone.png")
    broken = replace(split, paths=paths, labels=split.labels[:2], workers=workers)
    with pytest.raises(DataError) as error:
        list(broken.batches(1))
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'gone.png'} could be read when the data set was opened")
    assert "Traceback" not in message


class KilledByReading:
    """Stands for a path; the process that opens it is killed, as for want of memory."""

    def __fspath__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_is_reported(split):
    dying = replace(split, paths=(*split.paths[:8], KilledByReading()), workers=1)
    message = r"process that reads images died.*(\n.*)*workers=0"
    with pytest.raises(DataError, match=message), worker_failures():
        list(dying.batches(3))


class KilledLater(KilledByReading):
    def __fspath__(self):
        time.sleep(0.5)
        super().__fspath__()


def test_a_death_that_is_known_is_not_reported_again(split, monkeypatch):
    def fails(iterator):
        raise DataError("known")

    dying = replace(split, paths=(*split.paths[:8], KilledLater()), workers=1)
    batches = dying.batches(3)
    next(batches), next(batches)
    monkeypatch.setattr(file_split, "_next", fails)
    with pytest.raises(DataError, match="^known$") as error:
        next(batches)
    time.sleep(1.0)  # where PyTorch's report would strike
    assert error.traceback  # which keeps the loader alive


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError("reset by peer")])
def test_a_worker_that_dies_before_its_batch_is_fetched(error):
    def batches():
        raise error
        yield

    with pytest.raises(DataError, match="process that reads images died: (EOFError|reset by peer)"):
        file_split._next(batches())


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="^out of memory$"), worker_failures():
        raise RuntimeError("out of memory")
