"""The demo from its command line to its files."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import demo, experiment, report, training
from models.data import fashion_mnist

TINY = ["--epochs", "2", "--batch-size", "64", "--device", "cpu", "--tsne-points", "60"]
FILES = ["results.json", "report.html", "tsne.png", "curves.png", "pairs.png", "overview.png"]
PHASES = ["classification", "clustering", "warm_start"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished tiny run, and what the run printed."""
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "models.demo", *TINY, "--out", str(out)]
    root = Path(demo.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def checkpoint_of(out, phase):
    return torch.load(out / "checkpoints" / f"{phase}.pt", weights_only=True)


def test_everything_is_written(finished):
    out, _ = finished
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "checkpoints"])
    assert sorted(p.stem for p in (out / "checkpoints").iterdir()) == sorted(PHASES)
    for name in FILES[2:]:
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_tables_are_printed(finished):
    _, printed = finished
    results = json.loads((finished[0] / "results.json").read_text())
    rows = ["Classification", "Clustering", "Warm Start Classification"]
    for row, phase in zip(rows, PHASES, strict=True):
        accuracy = results["phases"][phase]["scores"]["accuracy"]["value"]
        assert re.search(rf"^{row} +{100 * accuracy:.2f}$", printed, re.MULTILINE)
    assert "NMI  Purity  Clusters in use" in printed
    assert "n = 450 test images, in percent [95 % Wilson interval]" in printed


def test_results_hold_the_whole_run(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    assert results["recipe"]["epochs"] == 2
    assert results["recipe"]["milestones"] == [1, 2]
    assert results["recipe"]["margin"] == 2.0
    assert results["recipe"]["gradient"] == "second"
    assert results["versions"]["torch"] == torch.__version__
    assert list(results["phases"]) == PHASES
    for phase in results["phases"].values():
        assert [record["epoch"] for record in phase["history"]] == [1, 2]
        assert phase["scores"]["accuracy"]["n"] == 450
        assert phase["history"][-1]["accuracy"] == phase["scores"]["accuracy"]["value"]
    assert "active_fraction" in results["phases"]["clustering"]["history"][0]
    confusion = results["phases"]["clustering"]["scores"]["confusion"]
    assert sum(map(sum, confusion)) == 450
    hits = sum(confusion[i][i] for i in range(10))
    assert hits == results["phases"]["clustering"]["scores"]["accuracy"]["correct"]


def test_the_report_stands_alone(finished):
    page = (finished[0] / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<!DOCTYPE html>" in page


def test_the_report_escapes_what_it_shows(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    results["command"] = "--out <script>alert(1)</script>"
    page = report.render(results, dict.fromkeys(["tsne", "curves", "pairs"], b""))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_the_warm_start_begins_with_the_clustering(tmp_path, monkeypatch):
    clustered = []
    pair_loss = training.PairObjective.__call__

    def pair_objective(self, outputs, labels):
        clustered.append(True)
        return pair_loss(self, outputs, labels)

    def cross_entropy(outputs, labels):
        if clustered:  # the first step of the warm start: its checkpoint holds its first weights
            raise KeyboardInterrupt
        return training.cross_entropy(outputs, labels)

    monkeypatch.setattr(training.PairObjective, "__call__", pair_objective)
    monkeypatch.setattr(experiment, "cross_entropy", cross_entropy)
    assert demo.main([*TINY, "--out", str(tmp_path)]) == 130
    clusters, warm = (checkpoint_of(tmp_path, phase) for phase in PHASES[1:])
    assert (len(clusters["history"]), len(warm["history"])) == (2, 0)
    torch.testing.assert_close(warm["model"], clusters["model"], rtol=0, atol=0)


def test_ctrl_c_and_resume(finished, tmp_path, monkeypatch, capsys):
    whole, _ = finished
    steps = []
    pair_loss = training.PairObjective.__call__

    def interrupted(self, outputs, labels):
        steps.append(1)
        if len(steps) == 30:  # in the second of two epochs of 22 steps
            raise KeyboardInterrupt
        return pair_loss(self, outputs, labels)

    monkeypatch.setattr(training.PairObjective, "__call__", interrupted)
    arguments = [*TINY, "--out", str(tmp_path)]
    assert demo.main(arguments) == 130
    message = capsys.readouterr().err
    assert message.endswith(f"python -m models.demo {' '.join(arguments)} --resume\n")
    assert len(checkpoint_of(tmp_path, "clustering")["history"]) == 1
    assert not (tmp_path / "results.json").exists()

    monkeypatch.undo()
    assert demo.main([*arguments, "--resume"]) == 0
    for phase in PHASES:
        resumed, left_alone = (checkpoint_of(out, phase)["model"] for out in (tmp_path, whole))
        torch.testing.assert_close(resumed, left_alone, rtol=0, atol=0)


def test_without_resume_old_checkpoints_are_gone(finished, tmp_path, monkeypatch):
    def interrupted(outputs, labels):
        raise KeyboardInterrupt

    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(experiment, "cross_entropy", interrupted)
    assert demo.main([*TINY, "--out", str(tmp_path)]) == 130
    assert [path.stem for path in (tmp_path / "checkpoints").iterdir()] == ["classification"]


def test_resume_with_other_settings_is_refused(finished, capsys):
    out, _ = finished
    assert demo.main([*TINY, "--out", str(out), "--lr", "0.5", "--resume"]) == 2
    assert "lr was 0.01, now 0.5" in capsys.readouterr().err


def test_a_run_that_diverges_stops(tmp_path, capsys):
    assert demo.main([*TINY, "--out", str(tmp_path), "--lr", "1e30"]) == 1
    assert "the loss is" in capsys.readouterr().err


def test_a_missing_data_set_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    arguments = ["--data", "fashion-mnist", "--data-root", str(tmp_path), "--out", str(tmp_path)]
    assert demo.main(arguments) == 2
    message = capsys.readouterr().err
    assert "apt-get install dataset-fashion-mnist" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--batch-size", "1"),
        ("--lr", "nan"),
        ("--margin", "-1"),
        ("--data", "mnist"),
    ],
)
def test_bad_options_are_refused(option, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        demo.main([option, value])
    assert stopped.value.code == 2
    assert option in capsys.readouterr().err


def test_each_data_set_has_its_defaults():
    args = demo.parse(["--data", "fashion-mnist"])
    assert (args.epochs, args.batch_size, args.lr) == (5, 128, 0.01)
    assert args.milestones == ()
    assert demo.parse(["--epochs", "19"]).milestones == (5, 10, 15)
