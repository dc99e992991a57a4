from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import plots, table
from benchmarks.pair_kl_hinge import Case
from benchmarks.record import Record, Result, machine, over_products, speedup

CASE = Case(1024, 34)


@pytest.fixture
def record() -> Record:
    results = [
        Result(CASE, "pairloss", [0.001, 0.002, 0.003], calls=2, peak_bytes=3 * 2**20),
        Result(CASE, "eager", [0.02, 0.01, 0.03]),
        Result(CASE, "compile", [0.008]),
        Result(CASE, "KeOps", problem="pykeops is not installed"),
        Result(CASE, "matrix products", [0.004], peak_problem="none"),
        Result(Case(16, 10), "pairloss", [1e-5]),
    ]
    return Record(machine(), {"seconds": 1.0}, results)


def test_round_trip(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "record.json"
    record.save(path)
    assert Record.load(path) == record


def test_other_formats_are_refused(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="expected format 1, got 99"):
        Record.load(path)


def test_machine_names_what_a_figure_depends_on_and_no_place() -> None:
    facts = machine()
    assert {"date", "cpu", "threads", "torch", "CPU kernels", "pairloss", "load"} <= set(facts)
    assert str(Path.cwd()) not in json.dumps(facts)


def test_figures(record: Record) -> None:
    ours, eager, compiled, keops, products, alone = record.results
    assert ours.median == 0.002
    assert ours.pairs_per_second == pytest.approx(1024 * 1023 / 2 / 0.002)
    assert ours.gflops == pytest.approx(6 * 1024**2 * 34 / 0.002 / 1e9)
    assert speedup(ours, record.results) == pytest.approx(4.0)  # compile is the better one
    assert speedup(eager, record.results) == pytest.approx(0.4)
    assert over_products(ours, record.results) == pytest.approx(2.0)
    assert speedup(products, record.results) is None
    assert speedup(alone, record.results) is None
    assert speedup(keops, record.results) is None


def test_graphs_compare_with_graphs(record: Record) -> None:
    graphs = [Result(CASE, "pairloss, graph", [1e-4]), Result(CASE, "eager, graph", [3e-4])]
    results = record.results + graphs
    assert speedup(graphs[0], results) == pytest.approx(3.0)
    assert speedup(results[0], results) == pytest.approx(4.0)


def test_table(record: Record) -> None:
    text = table.results_table(record.results)
    ours = next(line for line in text.splitlines() if " pairloss " in line)
    assert " ".join(ours.split()[3:]) == "pairloss 2 ms 50% 4x 2x 262 M 107 3 MiB"
    assert "(1024, 34) random  KeOps: pykeops is not installed" in text
    rows = table.results_table(record.results, markdown=True).splitlines()
    assert rows[0].startswith("| case") and set(rows[1]) == set("|-: ")
    assert len({len(row) for row in rows[: len(record.results) + 2]}) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (table.duration(1.5), "1.5 s"),
        (table.duration(0.0123), "12.3 ms"),
        (table.duration(4.56e-6), "4.56 us"),
        (table.duration(0.4567), "457 ms"),
        (table.scaled(2.5e9), "2.5 G"),
        (table.scaled(12.0), "12"),
        (table.size(1000), "< 1 MiB"),
        (table.size(3 * 2**30), "3 GiB"),
    ],
)
def test_how_figures_are_written(text: str, expected: str) -> None:
    assert text == expected


def test_plots(record: Record, tmp_path: Path) -> None:
    paths = plots.draw(record, tmp_path)
    assert [path.name for path in paths] == ["time-random.png", "memory-random.png"]
    assert all(path.stat().st_size > 1000 for path in paths)
