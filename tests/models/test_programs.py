"""The programs from their command lines: training, SIGKILL, warm start, scoring, errors."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import classify, cluster, evaluate, profile, warmstart
from models.recipe import load
from tests.models.data_files import write_image

ROOT = Path(cluster.__file__).parents[1]
TINY = [
    "--data", "digits", "--limit", "200", "--width", "0.1", "--epochs", "2", "--batch-size", "25",
    "--seed", "3", "--device", "cpu", "--tsne-points", "40",
]  # fmt: skip


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)["model"]


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    """A folder with an ended clustering of variant D."""
    out = tmp_path_factory.mktemp("cluster")
    assert cluster.main([*TINY, "--recipe", "table10-cifar10", "--out", str(out)]) == 0
    return out


def test_a_recipe_and_what_the_command_line_says_otherwise(clustered):
    recipe = load(clustered / "recipe.toml")
    assert (recipe.variant, recipe.loss_weights) == ("D", (0.4, 0.2, 0.4))
    assert (recipe.data, recipe.epochs, recipe.batch_size) == ("digits", 2, 25)
    assert recipe.milestones == (1, 2)
    page = (clustered / "report.html").read_text()
    assert "0.4 x skip (form), 0.2 x fc2 (digit), 0.4 x fc3 (digit)" in page
    assert "table10-cifar10" in page  # the command


def test_the_written_recipe_repeats_the_run(clustered, tmp_path, capsys):
    arguments = ["--recipe", str(clustered / "recipe.toml"), "--out", str(tmp_path)]
    assert cluster.main([*arguments, "--device", "cpu", "--tsne-points", "40"]) == 0
    torch.testing.assert_close(weights(tmp_path), weights(clustered), rtol=0, atol=0)
    printed = capsys.readouterr().out
    accuracy = json.loads((clustered / "results.json").read_text())["scores"]["accuracy"]["value"]
    assert f"{100 * accuracy:.2f}" in printed


def test_a_warm_start_is_repeated_from_its_start_and_its_recipe(clustered, tmp_path):
    common = ["--start", str(clustered), "--device", "cpu", "--tsne-points", "40"]
    first = [*common, "--epochs", "1", "--batch-size", "20", "--lr", "0.02"]
    again = [*common, "--recipe", str(tmp_path / "first" / "recipe.toml")]
    for name, arguments in (("first", first), ("again", again)):
        assert warmstart.main([*arguments, "--out", str(tmp_path / name)]) == 0
    both = weights(tmp_path / "again"), weights(tmp_path / "first")
    torch.testing.assert_close(*both, rtol=0, atol=0)


def test_warm_start_and_evaluation(clustered, tmp_path, capsys):
    warm = ["--start", str(clustered), "--epochs", "1", "--batch-size", "25", "--device", "cpu"]
    assert warmstart.main([*warm, "--tsne-points", "40", "--out", str(tmp_path)]) == 0
    recipe = load(tmp_path / "recipe.toml")
    assert (recipe.task, recipe.variant, recipe.width) == ("classification", "D", 0.1)
    assert (recipe.limit, recipe.seed) == (200, 3)
    assert recipe.weight_decay == load("table6-cifar10").weight_decay
    for folder in (clustered, tmp_path):
        capsys.readouterr()
        out = tmp_path / "scores"
        assert evaluate.main([str(folder), "--device", "cpu", "--out", str(out)]) == 0
        scores = json.loads((out / "scores.json").read_text())
        assert scores == json.loads((folder / "results.json").read_text())["scores"]
        assert f"{100 * scores['accuracy']['value']:.2f}" in capsys.readouterr().out


@pytest.fixture
def folder_of_classes(tmp_path):
    """Images in three classes, and a run trained on them."""
    root, out = tmp_path / "images", tmp_path / "run"
    for i, name in enumerate(("cat", "dog", "koi")):
        for j, part in enumerate(["train"] * 6 + ["test"] * 2):
            write_image(root / part / name / f"{j}.png", colour=80 * i + j, kind="PNG")
    classes = ["--data", "image-folder", "--data-root", str(root), "--image-size", "28"]
    arguments = [*TINY[4:], *classes, "--batch-size", "6", "--workers", "0"]
    assert classify.main([*arguments, "--out", str(out)]) == 0
    return root, out


def evaluated(root, out, csv):
    """The exit status, and the scores, with the classes of this table."""
    (root / "c.csv").write_text(csv)
    options = ["--data-root", str(root), "--classes-csv", str(root / "c.csv"), "--device", "cpu"]
    status = evaluate.main([str(out), *options, "--workers", "0", "--out", str(out / "again")])
    return status, out / "again" / "scores.json"


def test_evaluation_goes_by_the_names_of_the_classes(folder_of_classes):
    root, out = folder_of_classes
    scores = json.loads((out / "results.json").read_text())["scores"]
    status, path = evaluated(root, out, "class\nkoi\ncat\ndog\n")
    assert status == 0
    assert json.loads(path.read_text()) == scores


def test_evaluation_on_other_classes_is_refused(folder_of_classes, capsys):
    status, path = evaluated(*folder_of_classes, "class\ncat\ndog\n")
    assert (status, path.exists()) == (2, False)
    assert "trained on, got none beside them, and 'koi' not." in capsys.readouterr().err


def test_interrupted_it_says_how_to_go_on_where_it_can(clustered, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("models.run.build", interrupted)
    assert evaluate.main([str(clustered), "--device", "cpu"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"
    assert profile.main(["table7-cifar10", "--device", "cpu"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"
    assert cluster.main([*TINY, "--out", str(clustered / "new")]) == 130
    assert capsys.readouterr().err.endswith(f"{clustered / 'new'} --resume\n")


def test_killed_and_resumed_is_the_same_run_to_the_bit(clustered, tmp_path):
    arguments = [*TINY, "--recipe", "table10-cifar10", "--out", str(tmp_path)]
    checkpoint = tmp_path / "checkpoint.pt"
    # Another process, which is killed in the middle of its second epoch.
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from models import cluster, objectives\n"
        "step = objectives.PairObjective.__call__\n"
        "checkpoint, steps = Path(sys.argv[1]), 0\n"
        "def step_or_die(self, outputs, labels):\n"
        "    global steps\n"
        "    if checkpoint.exists() and torch.load(checkpoint, weights_only=True)['history']:\n"
        "        steps += 1\n"
        "    if steps == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, outputs, labels)\n"
        "objectives.PairObjective.__call__ = step_or_die\n"
        "cluster.main(sys.argv[2:])\n"
    )
    command = [sys.executable, "-c", program, str(checkpoint), *arguments]
    process = subprocess.run(command, cwd=ROOT)
    assert process.returncode == -signal.SIGKILL
    assert len(torch.load(checkpoint, weights_only=True)["history"]) == 1
    assert not (tmp_path / "results.json").exists()
    assert cluster.main([*arguments, "--resume"]) == 0
    torch.testing.assert_close(weights(tmp_path), weights(clustered), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (classify, ["--recipe", "table7-cifar10"], "expected one of classification"),
        (classify, ["--recipe", "table99"], "expected the path of a .toml, or table10-birdsnap34"),
        (cluster, ["--epochs", "0"], "epochs: expected int of at least 1, got 0"),
        (cluster, ["--lr", "nan"], "lr: expected float of at least 0, got nan"),
        (cluster, ["--loss-weights", "1", "2"], "loss_weights: expected 1 for variant A"),
        (cluster, [*TINY, "--network", "alexnet"], "alexnet cannot take scikit-learn digits"),
        (warmstart, ["--start", "nowhere"], "nowhere has no results.json"),
        (evaluate, ["nowhere"], "nowhere has no results.json"),
        (cluster, ["--seed", str(2**64)], f"seed: expected int of at most {2**37}, got {2**64}"),
        (cluster, ["--batch-size", str(2**64)], "batch_size: expected int of at most"),
        (cluster, [*TINY, "--data", "cifar10", "--data-root", "nowhere"], "CIFAR10 was not found"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(program, arguments, message, tmp_path, capsys):
    assert program.main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_warm_start_does_not_replace_its_start(clustered, monkeypatch, capsys):
    before = (clustered / "results.json").read_text()
    monkeypatch.chdir(clustered)
    folders = ["--start", str(clustered), "--out", "."]
    assert warmstart.main([*folders, "--device", "cpu"]) == 2
    assert "out: expected another folder than start, got " in capsys.readouterr().err
    assert (clustered / "results.json").read_text() == before


def test_the_results_of_a_table_are_not_those_of_a_run(tmp_path, capsys):
    for text in ('{"runs": []}', "[]"):
        (tmp_path / "results.json").write_text(text)
        assert evaluate.main([str(tmp_path)]) == 2
        assert "results.json: expected the results of one run" in capsys.readouterr().err


def test_an_out_that_cannot_be_written_to_is_said_in_a_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert classify.main([*TINY, "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "file") in error


def test_a_run_that_diverges_stops(tmp_path, capsys):
    assert classify.main([*TINY, "--lr", "1e30", "--out", str(tmp_path)]) == 1
    assert "error: stopped, the loss is" in capsys.readouterr().err


def test_a_dead_worker_is_reported(tmp_path, monkeypatch, capsys):
    def dies(*args, **options):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr("models.run.train", dies)
    assert classify.main([*TINY, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pid 7" in error
    assert "--workers 0" in error


def test_options_that_do_not_exist_are_refused(capsys):
    for arguments in (["--task", "clustering"], ["--variant", "E"], ["--epochs", "many"]):
        with pytest.raises(SystemExit) as stopped:
            cluster.main(arguments)
        assert stopped.value.code == 2
        assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "smallest"), [("--workers", 0), ("--checkpoint-every", 1), ("--tsne-points", 3)]
)
def test_numbers_that_would_fail_after_the_training_are_refused(option, smallest, capsys):
    for given in (str(smallest - 1), "1.5", "many"):
        with pytest.raises(SystemExit):
            cluster.main([option, given])
        message = f"argument {option}: expected a whole number of at least {smallest}, got"
        assert f"{message} {given!r}" in capsys.readouterr().err


def test_the_smallest_picture(tmp_path):
    assert cluster.main([*TINY, "--tsne-points", "3", "--out", str(tmp_path)]) == 0
