"""Checkpoints and files are whole or not there, and a wrong one is refused."""

import os
import pickle

import pytest
import torch

from models import checkpoint
from models.checkpoint import CheckpointError
from models.files import atomic_write, write_text

CPU = torch.device("cpu")
SETTINGS = {"lr": 0.01, "milestones": [1, 2]}


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "run.pt"
    weights = torch.randn(3, 4)
    checkpoint.save(
        path, {"settings": SETTINGS, "history": [{"loss": 0.5}], "model": {"w": weights}}
    )
    state = checkpoint.load(path, SETTINGS, CPU)
    torch.testing.assert_close(state["model"]["w"], weights, rtol=0, atol=0)
    assert state["history"] == [{"loss": 0.5}]
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    write_text(path, "old")

    def write_half():
        with atomic_write(path) as file:
            file.write(b"ne")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_who_reads_the_old_file_reads_all_of_it(tmp_path):
    write_text(tmp_path / "file", "old")
    with open(tmp_path / "file") as reader:
        write_text(tmp_path / "file", "new")
        assert reader.read() == "old"


def test_written_files_have_the_usual_permissions(tmp_path):
    write_text(tmp_path / "atomic", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    checkpoint.save(path, {"settings": SETTINGS})
    with pytest.raises(CheckpointError, match=r"lr was 0\.01, now 0\.1; seed was None, now 3\."):
        checkpoint.load(path, {**SETTINGS, "lr": 0.1, "seed": 3}, CPU)


def test_of_a_long_setting_the_difference_is_shown(tmp_path):
    path = tmp_path / "run.pt"
    names = [f"class {i}" for i in range(500)]
    checkpoint.save(path, {"settings": {"images": {"classes": names, "n": 3}}})
    changed = [*names[:300], "another", *names[301:]]
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path, {"images": {"classes": changed, "n": 3}}, CPU)
    was, now = str(error.value).partition("images.classes was ")[2].split(", now ")
    assert "class 300" in was
    assert "another" in now
    assert len(str(error.value)) < len(str(path)) + 400


def test_any_settings_are_taken_where_none_are_asked_for(tmp_path):
    checkpoint.save(tmp_path / "run.pt", {"model": {"w": torch.ones(2)}})
    assert checkpoint.load(tmp_path / "run.pt", None, CPU)["model"]["w"].sum() == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"run\.pt is not there"):
        checkpoint.load(tmp_path / "run.pt", SETTINGS, CPU)


class _Payload:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def _truncated(path):
    checkpoint.save(path, {"settings": SETTINGS, "model": {"w": torch.randn(100)}})
    path.write_bytes(path.read_bytes()[:300])


BAD_FILES = {
    "text": lambda path: path.write_text("not a checkpoint"),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": _truncated,
    "of another program": lambda path: torch.save({"model": {}}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "code in a pickle": lambda path: path.write_bytes(pickle.dumps(_Payload(), protocol=2)),
    "code in a checkpoint": lambda path: torch.save({"format": 1, "settings": _Payload()}, path),
}


@pytest.mark.parametrize("write", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_refused(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=r"run\.pt is .*; delete it"):
        checkpoint.load(tmp_path / "run.pt", SETTINGS, CPU)
    assert not (tmp_path / "pwned").exists()
