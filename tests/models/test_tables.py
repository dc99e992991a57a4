"""Rows and tables: the paper's figures and recipes, the layout, a table from its command line."""

import json
import shutil

import pytest
import torch

from models import paper, summary, tables
from models import run as runs
from models.experiment import Experiment
from models.summary import RowResult
from models.training import train

TINY = [
    "--data", "digits", "--limit", "200", "--width", "0.1", "--epochs", "1", "--batch-size", "50",
    "--device", "cpu", "--tsne-points", "40", "--seeds", "2",
]  # fmt: skip


def test_tables_have_the_papers_rows():
    assert paper.rows(3, "birdsnap34", extras=False) == ["ce", "a", "b", "c", "d"]
    assert paper.rows(3, "cifar10", extras=True)[5:] == ["ce-double-epochs"]
    assert paper.rows(3, "birdsnap34", extras=True)[5:] == ["ce-double-epochs", "a-batch-128"]
    assert paper.rows(4, "birdsnap34", extras=False) == ["ce", "a-double", "c"]
    assert paper.rows(5, "birdsnap34", extras=True) == ["imagenet-ce", "imagenet-c"]
    for table in paper.TABLES:
        for row in paper.rows(table, "birdsnap34", extras=False):
            assert row in paper.FIGURES["birdsnap34"]
            assert not paper.ROWS[row].ours


def test_rows_have_the_papers_recipes():
    clustering, warm = paper.recipes(paper.ROWS["c"], "birdsnap34", {}, seed=3)
    assert clustering == paper.load("table9-birdsnap34").with_values(seed=3)
    # The warm start is Table 6's, on the variant's network.
    assert warm == paper.load("table6-birdsnap34").with_values(seed=3, variant="C")
    none, entropy = paper.recipes(paper.ROWS["ce"], "cifar10", {}, seed=0)
    assert none is None
    assert entropy == paper.load("table6-cifar10")


def test_double_imagenet_and_our_rows():
    both = paper.recipes(paper.ROWS["a-double"], "birdsnap34", {"width": 0.5}, 0)
    assert [recipe.width for recipe in both] == [1.0, 1.0]
    clustering, warm = paper.recipes(paper.ROWS["imagenet-c"], "birdsnap34", {}, 0)
    assert (clustering.imagenet, warm.imagenet) == ("torchvision", "")
    _, entropy = paper.recipes(paper.ROWS["imagenet-ce"], "birdsnap34", {"imagenet": "x.pth"}, 0)
    assert entropy.imagenet == "x.pth"
    _, plain = paper.recipes(paper.ROWS["ce"], "birdsnap34", {"imagenet": "x.pth"}, 0)
    assert plain.imagenet == ""
    _, longer = paper.recipes(paper.ROWS["ce-double-epochs"], "cifar10", {"epochs": 19}, 0)
    assert (longer.epochs, longer.milestones) == (38, (10, 20, 30, 40))
    clustering, warm = paper.recipes(paper.ROWS["a-batch-128"], "birdsnap34", {}, 0)
    assert (clustering.batch_size, clustering.weight_decay) == (128, 5e-4)
    assert (warm.batch_size, warm.weight_decay) == (16, 1e-3)


def test_a_batch_size_for_all_rows_is_that_of_our_row_too(tmp_path):
    found = paper.recipes(paper.ROWS["a-batch-128"], "birdsnap34", {"batch_size": 64}, 0)
    assert [recipe.batch_size for recipe in found] == [64, 64]
    assert found[0].weight_decay == 5e-4
    for overrides, title in (({}, "batch 128"), ({"batch_size": 64}, "batch 64")):
        rows = Experiment(("a-batch-128",), "birdsnap34", overrides, (0,), tmp_path, "")
        assert rows.title("a-batch-128") == f"AlexNet A, {title} (ours)"


def accuracy(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 100}


def clustering(value, nmi):
    return {
        "accuracy": accuracy(value),
        "train_fitted_accuracy": accuracy(value - 0.02),
        "chance_accuracy": 0.125,
        "nmi": nmi,
        "nmi_arithmetic": nmi / 2,
        "ami": nmi - 0.1,
        "purity": 0.5,
        "clusters_in_use": 3,
        "confusion": [[0] * 4] * 4,
    }


ROWS = [
    RowResult("Cross-Entropy", [], [{"accuracy": accuracy(0.8)}], (None, None, None, 53.5)),
    RowResult(
        "A",
        [clustering(0.6, 0.9), clustering(0.7, 0.4)],
        [{"accuracy": accuracy(0.75)}, {"accuracy": accuracy(0.65)}],
        (17.2, 0.39, 0.17, 50.32),
    ),
    RowResult("not yet", [], []),
]


def test_the_best_of_the_seeds_beside_the_paper():
    _, entropy, a, none = summary.best_table(ROWS)
    dash = ["-"] * 7
    assert entropy == ["Cross-Entropy", *dash, "80.00 [79.0, 81.0]", "-", "-", "-", "53.50"]
    # All of a clustering's columns are of one seed.
    found = ["70.00 [69.0, 71.0]", "12.50", "68.00", "0.400", "0.300", "0.500", "3 of 4"]
    assert a == ["A", *found, "75.00 [74.0, 76.0]", "17.20", "0.39", "0.17", "50.32"]
    assert none == ["not yet", *dash, "-", "-", "-", "-", "-"]
    assert summary.best_table(ROWS, "nmi_arithmetic")[2][4] == "0.200"


def test_the_mean_over_the_seeds():
    _, entropy, a, none = summary.mean_table(ROWS)
    assert entropy == ["Cross-Entropy", "1", *["-"] * 7, "80.00"]
    found = ["65.00 ± 7.07", "12.50 ± 0.00", "63.00 ± 7.07", "0.650 ± 0.354", "0.550 ± 0.354"]
    assert a == ["A", "2", *found, "0.500 ± 0.000", "3.0 ± 0.0", "70.00 ± 7.07"]
    assert none == ["not yet", "0", *["-"] * 8]


def test_table_1():
    lines = summary.table_1(ROWS[:2], "mine", "Birdsnap34")
    assert lines == [
        ["", "mine", "paper, Birdsnap34"],
        ["Classification", "80.00 [79.0, 81.0]", "53.50"],
        ["Clustering", "70.00 [69.0, 71.0]", "17.20"],
        ["Warm Start Classification", "75.00 [74.0, 76.0]", "50.32"],
    ]


def test_layouts():
    table = [["", "x"], ["a row", "1"]]
    assert summary.as_text(table) == "       x\n--------\na row  1"
    assert summary.as_markdown(table) == "|  | x |\n| --- | ---: |\n| a row | 1 |"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    out = tmp_path_factory.mktemp("table")
    arguments = [*TINY, "--table", "2", "--rows", "ce", "b", "--out", str(out)]
    assert tables.main(arguments) == 0
    return out / "digits", arguments


def test_a_table_from_its_command_line(table):
    out, _ = table
    assert {p.name for p in out.iterdir()} == {"runs", "table2"}
    files = {"results.json", "table.md", "report.html"}
    assert {p.name for p in (out / "table2").iterdir()} == files
    record = json.loads((out / "table2/results.json").read_text())
    found = [(r["row"], r["phase"], r["recipe"]["seed"]) for r in record["runs"]]
    assert found == [
        ("ce", "classify", 0), ("ce", "classify", 1), ("b", "cluster", 0), ("b", "cluster", 1),
        ("b", "classify", 0), ("b", "classify", 1),
    ]  # fmt: skip
    best = max(r["scores"]["accuracy"]["value"] for r in record["runs"] if r["phase"] == "cluster")
    written = (out / "table2/table.md").read_text()
    assert f"| LeNet B | {100 * best:.2f} [" in written
    assert "n = 200 test images" in written
    assert "another data set" in written
    assert "0.54 | 0.73 | 75.42 |" in written
    assert {p.name for p in out.glob("runs/**/*.pt")} == {"outputs.pt"}  # no weights


def test_it_goes_on_where_it_stopped(table, tmp_path, monkeypatch, capsys):
    whole, arguments = table
    shutil.copytree(whole, tmp_path / "digits")
    shutil.rmtree(tmp_path / "digits/runs/b/seed1")
    shutil.rmtree(tmp_path / "digits/table2")
    trained = []

    def count(*args, **options):
        trained.append(options["title"])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(runs, "train", count)
    again = [*arguments[:-1], str(tmp_path)]
    assert tables.main(again) == 130
    assert f"python -m models.tables {' '.join(again)}\n" in capsys.readouterr().err
    monkeypatch.undo()
    assert tables.main(again) == 0
    assert trained == ["LeNet B", "LeNet B, warm start"]
    folders = [folder / "digits/table2" for folder in (whole.parent, tmp_path)]
    ended = [json.loads((folder / "results.json").read_text()) for folder in folders]
    scores = [[run["scores"] for run in record["runs"]] for record in ended]
    assert scores[0] == scores[1]


def test_a_record_keeps_what_only_some_runs_have_in_common(table, tmp_path):
    shutil.copytree(table[0], tmp_path / "digits")
    path = tmp_path / "digits/runs/b/seed1/cluster/results.json"
    results = json.loads(path.read_text())
    results["versions"]["torch"] = "another"
    path.write_text(json.dumps(results))
    assert tables.main([*table[1][:-1], str(tmp_path)]) == 0
    record = json.loads((tmp_path / "digits/table2/results.json").read_text())
    kept = [run.get("versions") for run in record["runs"]]
    assert kept == [None] * 3 + [results["versions"]] + [None] * 2
    assert record["versions"] == {**results["versions"], "torch": torch.__version__}
    assert not any("data" in run for run in record["runs"])


def test_a_row_alone_and_kept_weights(tmp_path):
    arguments = [*TINY[:-1], "1", "--rows", "a", "--keep-weights", "--out", str(tmp_path)]
    assert tables.main(arguments) == 0
    folder = tmp_path / "digits/runs/a/seed0"
    for phase in ("cluster", "classify"):
        assert "head.fc3.weight" in torch.load(folder / phase / "weights.pt")["model"]
