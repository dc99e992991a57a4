"""Birdsnap's release, and the project's two tables of its species."""

import csv
from collections import Counter

import pytest

from models import data
from models.data import DataError, DataOptions, birdsnap
from models.data.class_table import read_class_table
from models.data.hierarchy import UNKNOWN
from tests.models.data_files import BIRDS, write_birdsnap, write_image, write_page


@pytest.fixture
def three_species(tmp_path):
    path = tmp_path / "three.csv"
    path.write_text(
        "species_id,species,family\n1,Hawk,Accipitridae\n4,Eagle,Accipitridae\n70,Egret,A\n"
    )
    return path


def load(root, classes, **options):
    options = DataOptions(classes_csv=classes, workers=0, **options)
    return data.load("birdsnap34", root, options=options)


def of(split):
    """Files with their fine labels."""
    return zip(split.paths, split.labels[:, 0].tolist(), strict=True)


@pytest.mark.parametrize("place", [".", "birdsnap"])
def test_the_release_is_read(tmp_path, three_species, place):
    images = write_birdsnap(tmp_path / "root" / place)
    loaded = load(tmp_path / "root", three_species, image_size=28)
    assert loaded.in_shape == (3, 28, 28)
    assert loaded.levels[0].classes == ("Hawk", "Eagle", "Egret")
    assert (len(loaded.train), len(loaded.test)) == (12, 3)
    assert loaded.test.labels.tolist() == [[0, 0], [1, 0], [2, 1]]
    assert [path.relative_to(images).as_posix() for path in loaded.test.paths] == [
        "Coopers_Hawk/0104.jpg",
        "Golden_Eagle/0404.jpg",
        "Great_Egret/7004.jpg",
    ]
    assert loaded.notes["split"] == "12 training and 3 test images found of 12 + 3 listed"
    assert loaded.notes["class table"] == "three.csv"


@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_folders_are_found_in_any_case(tmp_path, three_species, change):
    images = write_birdsnap(tmp_path)
    for _, _, folder in BIRDS.values():
        (images / folder).rename(images / change(folder))
    loaded = load(tmp_path, three_species)
    assert (len(loaded.train), len(loaded.test)) == (12, 3)
    assert loaded.train.paths[0].parent.name == change("Coopers_Hawk")


def test_test_images_are_found_in_any_case(tmp_path, three_species):
    write_birdsnap(tmp_path)
    path = tmp_path / "test_images.txt"
    path.write_text(path.read_text().replace("Coopers_Hawk", "coopers_hawk"))
    loaded = load(tmp_path, three_species)
    assert (len(loaded.train), len(loaded.test)) == (12, 3)


def test_test_images_that_are_in_no_other_list_are_named(tmp_path, three_species, caplog):
    write_birdsnap(tmp_path)
    with (tmp_path / "test_images.txt").open("a") as file:
        file.write("Great_Egret/1.jpg\nGolden_Eagle/2.jpg\n")
    loaded = load(tmp_path, three_species)
    title = "test images that are not in images.txt"
    assert loaded.notes[title] == "2 (Great_Egret/1.jpg, Golden_Eagle/2.jpg)"
    assert f"Birdsnap34, {title}: {loaded.notes[title]}" in caplog.messages


def test_dead_links_and_other_formats(tmp_path, three_species):
    images = write_birdsnap(tmp_path)
    (images / "Coopers_Hawk" / "0100.jpg").unlink()
    (images / "Coopers_Hawk" / "0104.jpg").unlink()  # for testing
    write_page(images / "Golden_Eagle" / "0401.jpg")
    write_image(images / "Golden_Eagle" / "0402.jpg", kind="GIF")
    write_image(images / "Great_Egret" / "7002.jpg", mode="CMYK")
    loaded = load(tmp_path, three_species, image_size=28)
    assert loaded.notes["split"] == "10 training and 2 test images found of 12 + 3 listed"
    assert loaded.notes["skipped"] == (
        "3 files: 2 missing (Coopers_Hawk/0100.jpg, Coopers_Hawk/0104.jpg); "
        "1 a web page (HTML) (Golden_Eagle/0401.jpg)"
    )
    assert loaded.notes["converted to RGB"] == (
        "2 files: 1 palette, GIF named .jpg (Golden_Eagle/0402.jpg); 1 CMYK (Great_Egret/7002.jpg)"
    )
    assert loaded.notes["classes without a test image"] == "Hawk"
    assert [(path.name, label) for path, label in of(loaded.test)] == [
        ("0404.jpg", 1),
        ("7004.jpg", 2),
    ]
    assert {(path.parent.name, label) for path, label in of(loaded.train)} == {
        ("Coopers_Hawk", 0),
        ("Golden_Eagle", 1),
        ("Great_Egret", 2),
    }
    assert sum(len(labels) for _, labels in loaded.train.batches(4)) == 10


def test_species_may_share_a_class_and_be_left_out(tmp_path):
    write_birdsnap(tmp_path)
    (tmp_path / "c.csv").write_text("species_id,group\n1,raptors\n4,raptors\n")
    loaded = load(tmp_path, tmp_path / "c.csv")
    assert loaded.classes == ("raptors",)
    assert (len(loaded.train), len(loaded.test)) == (8, 2)


def test_a_species_that_is_not_in_the_release(tmp_path, three_species):
    write_birdsnap(tmp_path)
    three_species.write_text("species_id,species\n1,Hawk\n501,Dodo\n")
    with pytest.raises(DataError, match=r"expected ids of .*species\.txt as species_id, got 501\."):
        load(tmp_path, three_species)


def test_missing_birdsnap_says_how_to_get_it(tmp_path, three_species):
    with pytest.raises(DataError, match=r"thomasberg\.org") as error:
        load(tmp_path, three_species)
    assert str(tmp_path / "birdsnap") in str(error.value)


def test_lists_without_images(tmp_path, three_species):
    write_birdsnap(tmp_path, images=tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"has Birdsnap's lists but no images: expected them in"):
        load(tmp_path, three_species)


def test_a_list_in_another_format(tmp_path, three_species):
    write_birdsnap(tmp_path)
    text = (tmp_path / "images.txt").read_text()
    (tmp_path / "images.txt").write_text(text.replace("\t", ","))
    with pytest.raises(DataError, match=r"images\.txt: expected the columns path, species_id"):
        load(tmp_path, three_species)


# The tables


def taxonomy():
    with birdsnap.SPECIES.open() as file:
        return {row["species_id"]: row for row in csv.DictReader(file)}


def test_the_34_species_of_18_families():
    table = read_class_table(birdsnap.SPECIES_34, ("species_id",))
    assert [len(level.classes) for level in table.classes.levels] == [34, 18]
    assert list(table.fine.values()) == list(range(34))
    # The larger table, which is from another source, has the same names and families.
    known = taxonomy()
    names, families = (level.classes for level in table.classes.levels)
    for species, fine in table.fine.items():
        assert known[species]["species"].startswith(f"{names[fine]} (")
        assert known[species]["family"] == families[table.classes.table[fine, 1]]


def test_the_500_species_on_six_levels():
    table = read_class_table(birdsnap.SPECIES, ("species_id",))
    assert list(table.fine) == [str(i) for i in range(1, 501)]
    levels = {level.name: len(level.classes) for level in table.classes.levels}
    assert levels == {
        "species": 500,
        "genus": 237,
        "subfamily": 40,
        "family": 66,
        "order": 22,
        "class": 1,
    }
    assert int((table.classes.table[:, 2] == UNKNOWN).sum()) == 259
    # A tree: each class lies in one class of the next level.
    rows = list(taxonomy().values())
    for low, high in (("genus", "family"), ("subfamily", "family"), ("family", "order")):
        parents = {(row[low], row[high]) for row in rows if row[low]}
        assert max(Counter(name for name, _ in parents).values()) == 1


def test_all_of_birdsnap_by_chosen_levels(tmp_path, monkeypatch):
    write_birdsnap(tmp_path)
    small = tmp_path / "small.csv"
    with birdsnap.SPECIES.open() as file:
        lines = file.readlines()
    small.write_text("".join([lines[0], *(lines[int(i)] for i in BIRDS)]))
    monkeypatch.setattr(birdsnap, "SPECIES", small)
    loaded = data.load("birdsnap", tmp_path, options=DataOptions(workers=0))
    assert [level.name for level in loaded.levels][-2:] == ["order", "class"]
    assert (loaded.train.labels[:, 2] == UNKNOWN).all()  # none of the three has a subfamily

    options = DataOptions(workers=0, levels=("genus", "order"))
    loaded = data.load("birdsnap", tmp_path, options=options)
    assert loaded.classes == ("Accipiter", "Aquila", "Ardea")
    assert loaded.test.labels.tolist() == [[0, 0], [1, 0], [2, 1]]
    with pytest.raises(DataError, match="got subfamily, which 15 images lack"):
        data.load("birdsnap", tmp_path, options=DataOptions(workers=0, levels=("subfamily",)))
