from __future__ import annotations

import json
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import ablation, accuracy, compare, growth, pair_kl_hinge
from benchmarks.pair_kl_hinge import Case
from benchmarks.record import Record, Result
from tests import truth


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_path = tmp_path / "record.json"
    arguments = "--quick --sizes 16x10 48x5 --logits random half --no-memory --markdown"
    status = bench.main(
        [
            *arguments.split(),
            *("--methods", "pairloss", "eager", "L2C PairEnum", "matrix products"),
            *("--json", str(json_path), "--plot", str(tmp_path)),
        ]
    )
    assert status == 0
    output = capsys.readouterr().out
    assert output.count("| pairloss ") == 4
    record = Record.load(json_path)
    # A competitor is timed on the first logits of a size alone.
    assert len(record.results) == 2 * 2 * 4 - 2
    assert all(len(result.seconds) >= 3 for result in record.results)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"{what}-{kind}.png" for what in ("time", "memory") for kind in ("random", "half")
    }


def test_usual_cases() -> None:
    def cases(*argv: str) -> list[tuple[int, int, str]]:
        made = bench.make_cases(bench.parse_arguments([*argv]))
        return [(case.rows, case.columns, case.logits) for case in made]

    assert [case[:2] for case in cases()] == list(pair_kl_hinge.SIZES)
    assert {case[2] for case in cases()} == {"random"}
    full = cases("--full")
    assert len(full) == len(set(full)) == 2 * 10 + 3 * 5
    assert (4096, 128, "real-middle") in full and (1024, 4096, "real-middle") not in full
    assert (64, 7, "real-late") in cases("--sizes", "64x7", "--logits", "real")


@pytest.mark.parametrize("text", ["16", "axb", "1x10", "16x0", "1x2x3"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="expected N"):
        bench.parse_size(text)


def test_growth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--rows 32 64 128 --columns 5 --logits random --methods pairloss --no-memory"
    plot = tmp_path / "growth.png"
    argv = [*arguments.split(), "--seconds", "0.01", "--plot", str(plot)]
    assert growth.main(argv) == 0
    assert "exponent" in capsys.readouterr().out
    assert plot.exists()


def test_exponent_is_that_of_the_larger_sizes() -> None:
    points = [(10.0, 1.0), (20.0, 1.0), (40.0, 2.0), (80.0, 8.0), (160.0, 32.0)]
    assert growth.exponent(points) == pytest.approx(2.0)


def test_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--rows", "64", "--columns", "10", "--logits", "normal", "scale 0.001"]
    assert accuracy.main(argv) == 0
    assert capsys.readouterr().out.count("all dissimilar") == 2


def test_accuracy_is_measured_against_the_definition() -> None:
    values, labels = accuracy.make_logits("normal", 48, 10)
    margin = accuracy.margin_in_a_gap(values)
    expected = truth.evaluate(values.numpy(), labels.numpy(), margin)
    distance = abs(expected.divergence - margin).min()
    assert distance > 1e-5 and abs(margin - pair_kl_hinge.MARGIN) < 0.1
    reference = torch.tensor(expected.loss("mean"))
    off = 1.001 * reference.float()
    errors = accuracy.measure(lambda z, y, m: off + 0 * z.sum(), (values, labels), margin)
    assert errors.loss == pytest.approx(1e-3, rel=1e-3)
    assert errors.grad == pytest.approx(1.0)


@pytest.mark.slow
def test_ablation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "processor --sizes 32x5 --seconds 0.01 --logits random --variants pairloss default"
    path = tmp_path / "record.json"
    assert ablation.main([*arguments.split(), "--json", str(path)]) == 0
    assert "default" in capsys.readouterr().out
    assert [result.method for result in Record.load(path).results] == ["pairloss", "default"]


def test_ablation_of_an_unknown_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main(["processor", "--variants", "default", "sse9"]) == 2
    assert "avx2, default" in (message := capsys.readouterr().err)
    assert "got 'sse9'" in message


def test_table_of_an_ablation() -> None:
    seconds = {"pairloss": 1e-3, "without lists": 2e-3, "pairloss, avx512": 4e-3}
    seconds["without tables, avx512"] = 5e-3
    results = [
        Result(Case(rows, 2, kind), name, [factor * time])
        for rows, factor in ((8, 1), (16, 3))
        for kind in ("random", "half")
        for name, time in seconds.items()
    ]
    results[-1].seconds = [0.024]
    lines = ablation.results_table(results, markdown=True).splitlines()
    assert lines[0] == "At (8, 2), (16, 2):"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:]]
    assert rows == [
        ["pairloss", "1 ms, 3 ms", "1 ms, 3 ms"],
        ["without lists", "2.00x, 2.00x", "2.00x, 2.00x"],
        ["pairloss, avx512", "4 ms, 12 ms", "4 ms, 12 ms"],
        ["without tables, avx512", "1.25x, 1.25x", "1.25x, 2.00x"],
    ]


def test_variants_that_do_not_agree() -> None:
    grad = np.linspace(-1.0, 1.0, 20, dtype=np.float32).reshape(4, 5)
    answers = {"pairloss": (np.float32(1.0), grad), "same": (np.float32(1.000001), grad * 1.0001)}
    case = Case(4, 5)
    ablation.check_agreement(case, {name: lambda _, x=x: x for name, x in answers.items()})
    for wrong in ((np.float32(1.001), grad), (np.float32(1.0), grad[::-1])):
        ask = {"pairloss": lambda _: answers["pairloss"], "wrong": lambda _, x=wrong: x}
        with pytest.raises(RuntimeError, match="wrong: differs from pairloss by"):
            ablation.check_agreement(case, ask)


def micro_json(seconds: float) -> dict[str, object]:
    extra = {"calls": 10, "product_seconds": [0.5, 0.1, 0.2]}
    entry = {"param": "(16, 10) random", "stats": {"median": seconds}, "extra_info": extra}
    return {"benchmarks": [entry]}


def test_ratios_of_micro_benchmarks() -> None:
    assert compare.read_ratios(micro_json(4.0)) == {"(16, 10) random": pytest.approx(2.0)}


@pytest.mark.parametrize(
    ("attempts", "status"), [([1.2], 0), ([1.5, 1.1], 0), ([1.5, 1.6, 1.4], 1)]
)
def test_compare(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attempts: list[float], status: int
) -> None:
    """A regression is one that shows in every attempt."""
    runs = iter([{"case": ratio} for ratio in attempts])
    monkeypatch.setattr(compare, "run_tests", lambda: next(runs))
    path = tmp_path / "micro.json"
    path.write_text(json.dumps({"ratios": {"case": 1.0}}))
    assert compare.main(["--record", str(path)]) == status
    assert next(runs, None) is None


def test_compare_without_a_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "micro.json"
    assert compare.main(["--record", str(path)]) == 2
    assert "--save" in capsys.readouterr().out
    monkeypatch.setattr(compare, "run_tests", lambda: {"case": 1.0})
    assert compare.main(["--record", str(path), "--save"]) == 0
    assert compare.main(["--record", str(path)]) == 0


def test_case_that_is_gone_is_a_regression() -> None:
    assert compare.regressions({}, {"case": 1.0}) == ["case"]
