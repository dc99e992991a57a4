"""The user's CSV files of classes."""

import pytest

from models.data import DataError
from models.data.class_table import read_class_table
from models.data.hierarchy import UNKNOWN


@pytest.fixture
def read(tmp_path):
    def read_text(text, encoding="utf-8"):
        (tmp_path / "classes.csv").write_bytes(text.encode(encoding))
        return read_class_table(tmp_path / "classes.csv", ("path", "class"))

    return read_text


def test_keys_classes_and_levels(read):
    table = read("path,kind,realm\nkoi,fish,water\nox,cattle,land\ncow,cattle,land\n")
    assert table.key == "path"
    assert table.fine == {"koi": 0, "ox": 1, "cow": 1}
    assert [level.name for level in table.classes.levels] == ["kind", "realm"]
    assert [level.classes for level in table.classes.levels] == [
        ("fish", "cattle"),
        ("water", "land"),
    ]
    assert table.classes.table.tolist() == [[0, 0], [1, 1]]


def test_classes_are_a_level_of_their_own(read):
    table = read("class,kind,realm\nkoi,fish,water\nox,cattle,land\ncow,cattle,land\n")
    assert table.fine == {"koi": 0, "ox": 1, "cow": 2}
    assert [level.name for level in table.classes.levels] == ["class", "kind", "realm"]
    assert table.classes.table.tolist() == [[0, 0, 0], [1, 1, 1], [2, 1, 1]]
    assert read("class\nkoi\nox\n").classes.table.tolist() == [[0], [1]]


def test_what_spreadsheets_write(read):
    table = read('path, fine ,coarse\r\n"a, b.jpg", Koi ,\r\n\r\nc.jpg,Ox,Cattle\r\n', "utf-8-sig")
    assert table.fine == {"a, b.jpg": 0, "c.jpg": 1}
    assert table.classes.levels[0].classes == ("Koi", "Ox")
    assert table.classes.table.tolist() == [[0, UNKNOWN], [1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected a first line like 'path,<fine>.*' or 'class,<coarse>,...', got ''"),
        ("path\nkoi\n", "expected a first line like"),
        ("species,fine\nkoi,fish\n", "expected a first line like"),
        ("class,,coarse\na,b,c\n", "expected a first line like"),
        ("path,fine\n", "expected at least one class, got a first line only"),
        ("path,fine\nkoi,fish,water\n", "line 2: expected 2 columns, got 3"),
        ("path,fine\nkoi,\n", "line 2: expected a path and a fine, got an empty cell"),
        ("class,coarse\n,fish\n", "line 2: expected a class, got an empty cell"),
        ("path,fine\nkoi,fish\n\nkoi,ox\n", "line 4: path 'koi' is there twice"),
        ("path,fine,up\na,x,1\nb,x,2\n", "line 3: 'x' is in '2' here and in '1' before"),
        ("path,fine\na,\xff", "cannot be read"),
    ],
)
def test_a_bad_table_is_refused(read, text, message):
    with pytest.raises(DataError, match=message) as error:
        read(text, "latin-1")
    assert "classes.csv" in str(error.value)


def test_a_missing_table(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        read_class_table(tmp_path / "none.csv", ("class",))
