"""Image files as they are found in the wild: which can be read, and what is said of the others."""

import json
import os

import pytest
from PIL import Image

from models.data import file_check
from models.data.file_check import CACHE, Finding, check, examine, summarise
from tests.models.data_files import write_half, write_image, write_page

FILES = {
    "plain": (lambda path: write_image(path), Finding(True)),
    "grey": (lambda path: write_image(path, mode="L"), Finding(True, "grey")),
    "cmyk": (lambda path: write_image(path, mode="CMYK"), Finding(True, "CMYK")),
    "gif": (lambda path: write_image(path, kind="GIF"), Finding(True, "palette, GIF named .jpg")),
    "png": (lambda path: write_image(path, kind="PNG"), Finding(True, "PNG named .jpg")),
    "transparent": (
        lambda path: write_image(path, mode="RGBA", kind="PNG"),
        Finding(True, "transparent, PNG named .jpg"),
    ),
    "deep": (
        lambda path: write_image(path, mode="I;16", kind="PNG"),
        Finding(False, "more than 8 bits a channel"),
    ),
    "page": (write_page, Finding(False, "a web page (HTML)")),
    "half": (write_half, Finding(False, "damaged")),
    "text": (lambda path: path.write_text("not found"), Finding(False, "not an image")),
    "empty": (lambda path: path.write_bytes(b""), Finding(False, "empty")),
    "folder": (lambda path: path.mkdir(), Finding(False, "damaged")),
    "nothing": (lambda path: None, Finding(False, "missing")),
}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file_is_named(tmp_path, name):
    write, expected = FILES[name]
    write(tmp_path / f"{name}.jpg")
    assert check(tmp_path, [f"{name}.jpg"]) == [expected]


def test_findings_come_in_the_order_of_the_paths(tmp_path):
    paths = [f"{name}.jpg" for name in FILES]
    for path, (write, _) in zip(paths, FILES.values(), strict=True):
        write(tmp_path / path)
    assert check(tmp_path, paths) == [finding for _, finding in FILES.values()]
    assert check(tmp_path, paths[::-1]) == [finding for _, finding in FILES.values()][::-1]


@pytest.fixture
def examined(monkeypatch):
    """The names of the files that are decoded."""
    names = []

    def spy(path):
        names.append(path.name)
        return examine(path)

    monkeypatch.setattr(file_check, "examine", spy)
    return names


def test_only_new_and_changed_files_are_decoded(tmp_path, examined):
    paths = ["a.jpg", "b.jpg", "c.jpg"]
    for path in paths:
        write_image(tmp_path / path)
    check(tmp_path, paths[:2])
    assert sorted(examined) == ["a.jpg", "b.jpg"]
    examined.clear()

    write_page(tmp_path / "b.jpg")
    findings = check(tmp_path, paths)
    assert sorted(examined) == ["b.jpg", "c.jpg"]
    assert findings == [Finding(True), Finding(False, "a web page (HTML)"), Finding(True)]
    examined.clear()

    (tmp_path / "a.jpg").unlink()
    assert check(tmp_path, paths)[0] == Finding(False, "missing")
    assert examined == []


def test_a_file_of_the_same_size_but_another_time_is_decoded_again(tmp_path, examined):
    write_image(tmp_path / "a.jpg")
    check(tmp_path, ["a.jpg"])
    os.utime(tmp_path / "a.jpg", (1, 1))
    check(tmp_path, ["a.jpg"])
    assert examined == ["a.jpg", "a.jpg"]


@pytest.mark.parametrize("content", ["", "[]", '{"files": {}}', "\x00"])
def test_a_damaged_cache_is_replaced(tmp_path, examined, content):
    write_image(tmp_path / "a.jpg")
    (tmp_path / CACHE).write_text(content)
    assert check(tmp_path, ["a.jpg"]) == [Finding(True)]
    assert examined == ["a.jpg"]
    assert list(json.loads((tmp_path / CACHE).read_text())["files"]) == ["a.jpg"]


def test_a_cache_by_other_rules_is_replaced(tmp_path, examined, monkeypatch):
    write_image(tmp_path / "a.jpg")
    check(tmp_path, ["a.jpg"])
    monkeypatch.setattr(file_check, "RULES", "2")
    check(tmp_path, ["a.jpg"])
    assert examined == ["a.jpg", "a.jpg"]


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refuse(path, text):
        raise PermissionError(path)

    write_image(tmp_path / "a.jpg")
    monkeypatch.setattr(file_check, "write_text", refuse)
    assert check(tmp_path, ["a.jpg"]) == [Finding(True)]
    assert not (tmp_path / CACHE).exists()


def test_a_decoder_that_fails_in_its_own_way(tmp_path, monkeypatch):
    def fail(path):
        raise ZeroDivisionError

    monkeypatch.setattr(Image, "open", fail)
    assert examine(tmp_path / "a.jpg") == Finding(False, "damaged")


def test_a_refused_file_is_tried_again(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    write_image(tmp_path / "a.jpg")
    with monkeypatch.context() as refusing:
        refusing.setattr(Image, "open", refuse)
        assert check(tmp_path, ["a.jpg"]) == [Finding(False, "not permitted to be read")]
    assert check(tmp_path, ["a.jpg"]) == [Finding(True)]


def test_an_image_of_too_many_pixels(tmp_path, monkeypatch):
    write_image(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert examine(tmp_path / "a.jpg") == Finding(False, "too large")


def test_the_summary_has_totals_and_first_names():
    names = ["a", "b", "c", "d", "e", "f", "g"]
    findings = [Finding(False, "missing")] * 4 + [Finding(False, "empty"), Finding(True, "grey")]
    assert summarise(names, [*findings, Finding(True)]) == {
        "skipped": "5 files: 4 missing (a, b, c, ...); 1 empty (e)",
        "converted to RGB": "1 file: 1 grey (f)",
    }
    assert summarise(names[:1], [Finding(True)]) == {}
