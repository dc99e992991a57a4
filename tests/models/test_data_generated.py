"""Generated images: the promised numbers, the same from the same seed, and classes that show."""

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from models import data
from models.data import DataOptions, generated

NONE = DataOptions()


@pytest.fixture(scope="module")
def birds():
    return data.load("generated-birds", None, options=DataOptions(image_size=16))


def small(plan, **changes):
    return replace(plan, train_images=68, test_images=34, size=16, **changes)


def test_the_numbers_of_birdsnap34(birds):
    assert [len(level.classes) for level in birds.levels] == [34, 18]
    assert (len(birds.train), len(birds.test)) == (2982, 158)
    assert birds.in_shape == (3, 16, 16)
    assert birds.train.images.dtype == torch.uint8
    for split in (birds.train, birds.test):
        counts = torch.bincount(split.labels[:, 0], minlength=34)
        assert counts.max() - counts.min() <= 1
    # Single classes differ in pattern too, and many in one shape in pattern alone.
    assert birds.classes[6:9] == ("shape 1, dots", "shape 2, bars", "shape 3, stripes")
    # As many fine classes in each coarse class as species in each family.
    fine_per_coarse = birds.train.labels.unique(dim=0)[:, 1].bincount()
    assert sorted(fine_per_coarse.tolist()) == [1] * 12 + [2, 2, 3, 3, 5, 7]


def test_many_classes():
    many = generated.generate(replace(generated.MANY, train_images=240, test_images=120), NONE)
    assert [len(level.classes) for level in many.levels] == [120, 12]
    assert many.in_shape == (3, 28, 28)
    assert torch.bincount(many.train.labels[:, 0]).tolist() == [2] * 120


def test_a_seed_gives_one_set_of_images():
    first, again, other = (
        generated.generate(small(generated.BIRDS), DataOptions(split_seed=seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert not torch.equal(first.train.images[:34], first.test.images[:34])


def test_batches_are_normalised(birds):
    images, labels = next(birds.train.batches(500))
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 0.3
    assert 0.7 < float(images.std()) < 1.3
    assert torch.equal(labels, birds.train.labels[:500])


def test_shapes_are_unlike_one_another():
    outlines = generated._outlines(18)
    angles = torch.linspace(0, 6.28, 100)
    curves = generated._radius(outlines[:, :, :, None], angles)
    assert curves.min() > 0.3
    distances = torch.cdist(curves, curves) / 10 + torch.eye(18)
    assert distances.min() > 0.1


@pytest.mark.parametrize("level", [0, 1])
def test_the_mean_colour_says_nothing(birds, level):
    def colours(split):
        return split.images.float().mean((2, 3)).numpy(), split.labels[:, level].numpy()

    pixels, labels = colours(birds.train)
    model = LogisticRegression(max_iter=500).fit(pixels, labels)
    commonest = torch.bincount(birds.test.labels[:, level]).max() / len(birds.test)
    assert model.score(*colours(birds.test)) < float(commonest) + 0.06


def test_a_network_learns_the_classes():
    """A small network, in two seconds; shape and pattern both show."""
    plan = replace(generated.MANY, fine_per_coarse=(3,) * 4, train_images=1200, test_images=240)
    loaded = generated.generate(plan, NONE)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 20, 5), nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 40, 5), nn.BatchNorm2d(40), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(640, 12),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(4):
        for images, labels in loaded.train.shuffled_batches(32):
            loss = torch.nn.functional.cross_entropy(model(images), labels[:, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    images, labels = next(loaded.test.batches(240))
    found = model(images).argmax(1)
    assert (found == labels[:, 0]).float().mean() > 0.5  # by chance: 0.08
    assert (found // 3 == labels[:, 1]).float().mean() > 0.6  # 0.25
    patterns = [(fine % 3 + fine // 3) % len(generated.PATTERNS) for fine in range(12)]
    patterns = torch.tensor(patterns)
    assert (patterns[found] == patterns[labels[:, 0]]).float().mean() > 0.6  # 0.2
