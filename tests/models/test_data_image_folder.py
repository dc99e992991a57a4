"""Any folder of images: nesting, class tables, splits, and what is missing."""

import logging

import pytest
import torch

from models import data
from models.data import DataError, DataOptions
from models.data.image_files import draw_test_rows
from tests.models.data_files import write_half, write_image, write_page


def load(root, **options):
    return data.load("image-folder", root, options=DataOptions(workers=0, image_size=28, **options))


def write_classes(root, *folders, images=5):
    for folder in folders:
        for i in range(images):
            write_image(root / folder / f"{i}.jpg")


def names(split, data):
    """Each image's path, under its classes' names from fine to coarse."""
    rows = zip(split.paths, split.labels.tolist(), strict=True)
    return {
        str(path.parent.relative_to(data.notes["source"])): [
            level.classes[label] for level, label in zip(data.levels, labels, strict=True)
        ]
        for path, labels in rows
    }


def test_one_level(tmp_path):
    write_classes(tmp_path, "cat", "dog")
    loaded = load(tmp_path)
    assert loaded.title == tmp_path.name
    assert [(level.name, level.classes) for level in loaded.levels] == [("class", ("cat", "dog"))]
    assert names(loaded.train, loaded) == {"cat": ["cat"], "dog": ["dog"]}
    assert (len(loaded.train), len(loaded.test)) == (8, 2)
    assert sorted(loaded.test.labels[:, 0].tolist()) == [0, 1]


def test_coarse_and_fine_in_train_and_test(tmp_path):
    write_classes(tmp_path, "train/bird/owl", "train/bird/tit", "train/fish/koi")
    write_classes(tmp_path, "test/fish/koi", "test/bird/owl", images=1)
    loaded = load(tmp_path)
    assert [level.name for level in loaded.levels] == ["fine", "coarse"]
    assert names(loaded.train, loaded) == {
        "train/bird/owl": ["owl", "bird"],
        "train/bird/tit": ["tit", "bird"],
        "train/fish/koi": ["koi", "fish"],
    }
    assert names(loaded.test, loaded) == {
        "test/bird/owl": ["owl", "bird"],
        "test/fish/koi": ["koi", "fish"],
    }
    assert loaded.notes["classes without a test image"] == "tit"
    assert loaded.notes["split"] == "15 training and 2 test images (as given)"


def test_three_levels_and_a_name_that_is_there_twice(tmp_path):
    write_classes(tmp_path, "a/fish/other", "a/bird/other", "a/bird/owl", "b/stone/gem")
    loaded = load(tmp_path)
    assert [level.classes for level in loaded.levels] == [
        ("a/bird/other", "owl", "a/fish/other", "gem"),
        ("bird", "fish", "stone"),
        ("a", "b"),
    ]


def test_a_table_of_classes_chooses_and_groups(tmp_path):
    write_classes(tmp_path, "x/cat", "x/dog", "y/koi", "y/cup")
    (tmp_path / "c.csv").write_text("class,realm\ncat,land\ndog,land\ny/koi,sea\n")
    loaded = load(tmp_path, classes_csv=tmp_path / "c.csv")
    assert names(loaded.train, loaded) == {
        "x/cat": ["cat", "land"],
        "x/dog": ["dog", "land"],
        "y/koi": ["y/koi", "sea"],
    }
    assert loaded.notes["left out"] == "5 images of classes not in the table"


def test_a_table_of_paths(tmp_path):
    write_classes(tmp_path, "train", "test", images=3)
    rows = [
        f"{part}/{i}.jpg,{'odd' if i % 2 else 'even'}"
        for part in ("train", "test")
        for i in range(3)
    ]
    (tmp_path / "c.csv").write_text("\n".join(["path,parity", *rows, "train/9.jpg,odd"]))
    loaded = load(tmp_path, classes_csv=tmp_path / "c.csv")
    assert loaded.classes == ("even", "odd")
    assert loaded.train.labels.flatten().tolist() == [0, 1, 0]
    assert [path.name for path in loaded.test.paths] == ["0.jpg", "1.jpg", "2.jpg"]
    assert loaded.notes["skipped"] == "1 file: 1 missing (train/9.jpg)"


def test_paths_with_detours_are_in_the_part_they_lead_to(tmp_path):
    write_classes(tmp_path, "train", "test", images=2)
    rows = ["./train/0.jpg,a", "test/../train/1.jpg,b", "./test/0.jpg,a", "train//..//test/1.jpg,b"]
    (tmp_path / "c.csv").write_text("\n".join(["path,letter", *rows]))
    loaded = load(tmp_path, classes_csv=tmp_path / "c.csv")
    for split, part in ((loaded.train, "train"), (loaded.test, "test")):
        assert [path.relative_to(tmp_path).as_posix() for path in split.paths] == [
            f"{part}/0.jpg",
            f"{part}/1.jpg",
        ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("0.jpg", r"c\.csv: expected paths in train/ or test/, got '0\.jpg'\."),
        ("train/../0.jpg", r"expected paths in train/ or test/, got 'train/\.\./0\.jpg'\."),
        ("Test/0.jpg", r"expected paths in train/ or test/, got 'Test/0\.jpg'\."),
        ("./test/0.jpg", r"each file once, got test/0\.jpg as 'test/0\.jpg' and '\./test/0\.jpg'"),
    ],
)
def test_paths_in_no_part_or_twice_are_refused(tmp_path, path, message):
    write_classes(tmp_path, ".", "train", "test", images=1)
    (tmp_path / "c.csv").write_text(f"path,letter\ntrain/0.jpg,a\ntest/0.jpg,a\n{path},a\n")
    with pytest.raises(DataError, match=message):
        load(tmp_path, classes_csv=tmp_path / "c.csv")


def test_bad_files_are_left_out_and_named(tmp_path, caplog):
    write_classes(tmp_path, "cat", "dog")
    write_page(tmp_path / "cat" / "0 page.jpg")
    write_half(tmp_path / "dog" / "half.jpg")
    write_image(tmp_path / "dog" / "grey.jpg", mode="L")
    (tmp_path / "dog" / "notes.txt").write_text("not an image, and not named as one")
    with caplog.at_level(logging.WARNING):
        loaded = load(tmp_path)
    assert len(loaded.train) + len(loaded.test) == 11
    skipped = "2 files: 1 a web page (HTML) (cat/0 page.jpg); 1 damaged (dog/half.jpg)"
    assert loaded.notes["skipped"] == skipped
    assert loaded.notes["converted to RGB"] == "1 file: 1 grey (dog/grey.jpg)"
    assert f"{tmp_path.name}, skipped: {skipped}" in caplog.messages
    assert names(loaded.train, loaded) == {"cat": ["cat"], "dog": ["dog"]}
    images = torch.cat([images for images, _ in loaded.train.batches(4)])
    assert images.shape == (len(loaded.train), 3, 28, 28)


@pytest.mark.parametrize("mode", ["CMYK", "L", "1"])
def test_every_mode_becomes_three_channels(tmp_path, mode):
    write_image(tmp_path / "a" / "0.tif", mode=mode, kind="TIFF")
    write_classes(tmp_path, "a", images=1)
    images, _ = next(load(tmp_path, in_memory=True).train.batches(1))
    assert images.shape == (1, 3, 28, 28)


def write_nothing(root):
    (root / "cat").mkdir(parents=True)


def write_empty_class(root):
    write_classes(root, "cat")
    (root / "dog").mkdir()


def write_broken_class(root):
    write_classes(root, "cat")
    write_page(root / "dog" / "0.jpg")


def write_two_depths(root):
    write_classes(root, "cat", "dog/poodle")


def write_class_only_tested(root):
    write_classes(root, "train/cat", "test/cat", "test/dog")


def write_broken_test(root):
    write_classes(root, "train/cat")
    write_page(root / "test" / "cat" / "0.jpg")


def write_train_only(root):
    write_classes(root, "train/cat")


BAD = {
    "no image": (write_nothing, "cat: expected images, got an empty class folder"),
    "an empty class": (write_empty_class, "dog: expected images, got an empty class folder"),
    "a class of bad files": (
        write_broken_class,
        r"no training image for 1 of 2 classes \(dog\)\. Skipped: 1 file: 1 a web page",
    ),
    "two depths": (
        write_two_depths,
        r"all at the same depth; got images in 'cat' and 'dog/poodle'",
    ),
    "a class only tested": (write_class_only_tested, r"no training image for 1 of 2 .*\(dog\)"),
    "no test image": (write_broken_test, "no test image. Skipped: 1 file"),
    "no test folder": (write_train_only, "expected train/ and test/, or neither, got train/ only"),
    "images beside folders": (
        lambda root: (write_classes(root, "cat"), write_image(root / "0.jpg")),
        "got images in '.' and 'cat'",
    ),
    "no folder": (lambda root: None, "--data-root: expected a folder of images"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_is_no_data_set(tmp_path, name):
    write, message = BAD[name]
    write(tmp_path / "root")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "root")


def test_one_image_a_class_cannot_be_split(tmp_path):
    write_classes(tmp_path, "cat", "dog", images=1)
    with pytest.raises(DataError, match="no test image"):
        load(tmp_path)


def test_the_split_is_drawn_from_its_seed():
    fine = torch.arange(4).repeat_interleave(torch.tensor([1, 2, 10, 100]))
    is_test = draw_test_rows(fine, 0.2, seed=0)
    assert torch.bincount(fine[is_test], minlength=4).tolist() == [0, 1, 2, 20]
    assert torch.equal(draw_test_rows(fine, 0.2, seed=0), is_test)
    assert not torch.equal(draw_test_rows(fine, 0.2, seed=1), is_test)


def test_in_memory_with_random_transforms_is_refused(tmp_path):
    write_classes(tmp_path, "cat", "dog")
    with pytest.raises(DataError, match="in_memory keeps one cut"):
        load(tmp_path, in_memory=True, horizontal_flip=True)
