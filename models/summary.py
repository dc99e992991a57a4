"""The results as tables: the paper's Table 1, and a fuller one."""

from __future__ import annotations

from typing import Any

# Table 1 of the paper, column CIFAR-10, in percent.
PAPER_TABLE_1 = {"classification": 75.48, "clustering": 74.21, "warm_start": 75.75}

Table = list[list[str]]  # the first row is the heading


def table_1(results: dict[str, Any]) -> Table:
    """The paper's Table 1: three accuracies in percent, beside its own where they compare."""
    data = results["data"]
    compare = data["name"] == "cifar10"
    rows = [["", data["title"]] + (["paper, 95 epochs"] if compare else [])]
    names = {
        "classification": "Classification",
        "clustering": "Clustering",
        "warm_start": "Warm Start Classification",
    }
    for phase, name in names.items():
        row = [name, _percent(results["phases"][phase]["scores"]["accuracy"]["value"])]
        rows.append(row + ([f"{PAPER_TABLE_1[phase]:.2f}"] if compare else []))
    return rows


def full_table(results: dict[str, Any]) -> Table:
    """The columns of the paper's Tables 2 and 3, with intervals and what they leave out."""
    phases = results["phases"]
    clusters = phases["clustering"]["scores"]
    heading = [
        "",
        "Clustering acc.",
        "fitted on train",
        "NMI",
        "Purity",
        "Clusters in use",
        "Classification acc.",
    ]
    baseline = _accuracy(phases["classification"]["scores"]["accuracy"])
    return [
        heading,
        ["Cross-Entropy", *["-"] * 5, baseline],
        [
            "LeNet A",
            _accuracy(clusters["accuracy"]),
            _percent(clusters["train_fitted_accuracy"]["value"]),
            f"{clusters['nmi']:.3f}",
            f"{clusters['purity']:.3f}",
            f"{clusters['clusters_in_use']} of {len(results['data']['classes'])}",
            _accuracy(phases["warm_start"]["scores"]["accuracy"]),
        ],
    ]


def as_text(table: Table) -> str:
    """Columns aligned with blanks: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _accuracy(accuracy: dict[str, Any]) -> str:
    low, high = 100 * accuracy["low"], 100 * accuracy["high"]
    return f"{_percent(accuracy['value'])} [{low:.1f}, {high:.1f}]"
