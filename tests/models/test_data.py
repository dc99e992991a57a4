"""Levels, splits, and what is common to all data sets."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import data
from models.data import DataError, DataOptions, ImageData, Level, MemorySplit
from models.data.file_split import FileSplit
from models.data.hierarchy import UNKNOWN, hierarchy


def split_of(n: int) -> MemorySplit:
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


def test_a_process_gets_its_rows_of_each_batch():
    whole, parts = [], []
    for world_size, found in ((1, whole), (2, parts)):
        for rank in range(world_size):
            torch.manual_seed(0)
            batches = split_of(14).shuffled_batches(4, rank, world_size)
            found.append([labels.flatten().tolist() for _, labels in batches])
    assert [len(rows) for rows in whole[0]] == [4, 4, 4, 2]
    # The last two rows would be one for each of two processes.
    assert [len(rows) for rows in parts[0]] == [len(rows) for rows in parts[1]] == [2, 2, 2]
    for batch, first, second in zip(whole[0], *parts, strict=False):
        assert batch == [first[0], second[0], first[1], second[1]]


def test_the_order_is_drawn_from_the_cpu_generator():
    def order():
        return [labels.flatten().tolist() for _, labels in split_of(20).shuffled_batches(8)]

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = order(), order()
    assert first != second
    torch.set_rng_state(state)
    assert order() == first


def test_batches_in_order_are_prepared():
    split = MemorySplit(torch.arange(5).view(5, 1, 1, 1), torch.zeros(5, 1), lambda x: 2 * x)
    images = [images.flatten().tolist() for images, _ in split.batches(2)]
    assert images == [[0, 2], [4, 6], [8]]
    assert next(split.subset(torch.tensor([3, 1])).batches(2))[0].flatten().tolist() == [6, 2]


def of_files(folder: str, names: list[str], label: int = 0, kind: str = "a") -> ImageData:
    """The first file is for testing; no file is there."""
    paths = tuple(Path(folder) / name for name in names)
    files = FileSplit(paths, torch.tensor([[label]] + [[0]] * (len(paths) - 1)), 28, workers=0)
    levels = (Level("kind", (kind, "b")),)
    rows = torch.arange(len(paths))
    return ImageData("files", levels, files.subset(rows[1:]), files.subset(rows[:1]))


def test_a_data_set_is_known_wherever_it_lies():
    identity = of_files("/here", ["x/1", "y/2", "y/3"]).identity()
    counts = {"train_images": 2, "test_images": 1}
    assert identity == {"levels": {"kind": ["a", "b"]}, **counts} | {
        "fingerprint": identity["fingerprint"]
    }
    assert of_files("some/where", ["x/1", "y/2", "y/3"]).identity() == identity
    assert of_files(".", ["x/1", "y/2", "y/3"]).identity() == identity
    others = [
        of_files("/here", ["x/1", "y/2", "y/4"]),
        of_files("/here", ["y/2", "x/1", "y/3"]),
        of_files("/here", ["x/1", "y/2", "y/3"], label=1),
        of_files("/here", ["x/1", "y/2", "y/3"], kind="c"),
    ]
    found = {identity["fingerprint"], *(other.identity()["fingerprint"] for other in others)}
    assert len(found) == 5


def test_images_in_memory_are_known_by_their_labels(prototypes):
    identity = prototypes.identity()
    assert identity["levels"] == {"kind": ["a", "b", "c", "d"], "group": ["ab", "cd"]}
    flipped = replace(prototypes, test=prototypes.test.with_labels(prototypes.test.labels.flip(0)))
    assert flipped.identity()["fingerprint"] != identity["fingerprint"]
    assert {**flipped.identity(), "fingerprint": identity["fingerprint"]} == identity


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, 1)])
def test_labels_of_the_wrong_shape_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels: expected shape \(3, levels\), got"):
        MemorySplit(torch.zeros(3, 1, 2, 2), labels)


def test_an_unknown_coarse_class():
    birds = hierarchy(
        ("species", "subfamily", "family"),
        {"Brant": ["Anserinae", "Anatidae"], "Great Egret": ["", "Ardeidae"]},
    )
    assert birds.labels(torch.tensor([1, 0, 1])).tolist() == [[1, UNKNOWN, 1], [0, 0, 0]] + [
        [1, UNKNOWN, 1]
    ]
    assert [level.classes for level in birds.levels[1:]] == [
        ("Anserinae",),
        ("Anatidae", "Ardeidae"),
    ]


def test_levels_are_chosen_by_name():
    digits = data.load("digits", Path("nowhere"))
    forms = data.load("digits", Path("nowhere"), options=DataOptions(levels=("form",)))
    assert forms.classes == ("loop", "open line")
    assert torch.equal(forms.test.labels[:, 0], digits.test.labels[:, 1])
    with pytest.raises(DataError, match="levels: expected some of digit, form, got digits"):
        data.load("digits", Path("nowhere"), options=DataOptions(levels=("digits",)))


def test_a_limit():
    few = data.load("digits", Path("nowhere"), options=DataOptions(limit=100))
    assert (len(few.train), len(few.test)) == (100, 100)
    assert len(few.train.labels[:, 0].unique()) == 10
    assert few.notes["limit"] == "at most 100 images of each split (seed 0)"
    other = data.load("digits", Path("nowhere"), options=DataOptions(limit=100, split_seed=1))
    assert not torch.equal(few.train.images, other.train.images)


def test_an_option_of_another_data_set_is_refused():
    with pytest.raises(DataError, match="image_size: digits has no such option, got 64"):
        data.load("digits", Path("nowhere"), options=DataOptions(image_size=64))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image_size", 0),
        ("workers", -1),
        ("limit", 0),
        ("split_seed", -1),
        ("test_fraction", 0.0),
        ("test_fraction", 1.0),
        ("test_fraction", float("nan")),
    ],
)
def test_an_option_out_of_range_is_refused(option, value):
    with pytest.raises(DataError, match=f"{option}: expected .*, got {value}"):
        DataOptions(**{option: value})
