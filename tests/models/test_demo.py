"""The demo from its command line to its files."""

import io
import json
import re
from contextlib import redirect_stdout

import pytest

from models import demo
from models.data import fashion_mnist
from models.training import train

TINY = [
    "--epochs", "2", "--batch-size", "64", "--width", "0.2", "--device", "cpu",
    "--tsne-points", "60",
]  # fmt: skip
FILES = ["results.json", "report.html", "table.md", "overview.png"]
RUNS = ["ce/seed0/classify", "a/seed0/cluster", "a/seed0/classify"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished tiny run, and what the run printed."""
    out = tmp_path_factory.mktemp("demo")
    with redirect_stdout(io.StringIO()) as printed:
        assert demo.main([*TINY, "--out", str(out)]) == 0
    return out, printed.getvalue()


def results_of(out, run):
    return json.loads((out / "runs" / run / "results.json").read_text())


def test_everything_is_written(finished):
    out, _ = finished
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "runs"])
    assert (out / "overview.png").read_bytes().startswith(b"\x89PNG")
    for run in RUNS:
        assert [r["epoch"] for r in results_of(out, run)["history"]] == [1, 2]


def test_the_paper_s_table_1_is_printed(finished):
    out, printed = finished
    rows = ["Classification", "Clustering", "Warm Start Classification"]
    for row, run, paper in zip(rows, RUNS, ("75.48", "74.21", "75.75"), strict=True):
        accuracy = results_of(out, run)["scores"]["accuracy"]["value"]
        line = rf"^{row} +{100 * accuracy:.2f} \[[\d., ]+\] +{paper}$"
        assert re.search(line, printed, re.MULTILINE)
    assert re.search("NMI +AMI +Purity +Clusters", printed)
    assert "n = 450 test images" in printed


def test_the_warm_start_is_the_clusterings(finished):
    clusters, warm = (results_of(finished[0], run) for run in RUNS[1:])
    assert warm["start"] == clusters["recipe"]
    assert clusters["recipe"]["gradient"] == "second"
    assert results_of(finished[0], RUNS[0])["start"] is None


def test_ctrl_c_and_resume(finished, tmp_path, monkeypatch, capsys):
    whole, _ = finished
    started = []

    def interrupted(*args, **options):
        started.append(options["title"])
        if len(started) == 3:
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr("models.run.train", interrupted)
    arguments = [*TINY, "--out", str(tmp_path)]
    assert demo.main(arguments) == 130
    message = capsys.readouterr().err
    assert message.endswith(f"python -m models.demo {' '.join(arguments)} --resume\n")
    assert not (tmp_path / "results.json").exists()

    monkeypatch.undo()
    assert demo.main([*arguments, "--resume"]) == 0
    for run in RUNS:
        assert results_of(tmp_path, run)["scores"] == results_of(whole, run)["scores"]


def test_without_resume_its_own_old_runs_are_gone(finished, tmp_path, monkeypatch):
    runs = ["a/seed0/cluster", "a/seed1/cluster", "b/seed0/cluster", "mine"]
    old, *others = [tmp_path / "runs" / run / "results.json" for run in runs]
    for file in (old, *others):
        file.parent.mkdir(parents=True)
        file.write_text("{}")

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("models.run.train", interrupted)
    assert demo.main([*TINY, "--out", str(tmp_path)]) == 130
    assert not old.exists()
    assert all(file.exists() for file in others)


def test_a_missing_data_set_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    arguments = ["--data", "fashion-mnist", "--data-root", str(tmp_path), "--out", str(tmp_path)]
    assert demo.main(arguments) == 2
    message = capsys.readouterr().err
    assert "apt-get install dataset-fashion-mnist" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("arguments", "epochs", "batch_size", "milestones"),
    [
        ([], 20, 16, (5, 11, 16, 21)),
        (["--data", "fashion-mnist"], 5, 128, ()),
        (["--data", "fashion-mnist", "--epochs", "19"], 19, 128, (5, 10, 15, 20)),
        (["--data", "cifar10", "--milestones", "3"], 20, 128, (3,)),
    ],
)
def test_each_data_set_has_its_defaults(monkeypatch, arguments, epochs, batch_size, milestones):
    loaded = []

    def load_data(recipe, args, device):
        loaded.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.cli, "load_data", load_data)
    assert demo.main(arguments) == 130
    assert (loaded[0].epochs, loaded[0].batch_size) == (epochs, batch_size)
    assert (loaded[0].milestones, loaded[0].lr) == (milestones, 0.01)
