"""Results as tables of text, laid out as in the paper, with what it leaves out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Table = list[list[str]]  # the first row is the heading
Scores = dict[str, Any]  # as in results.json


@dataclass(frozen=True)
class RowResult:
    """One line of a table: the scores of each seed that has ended, and the paper's figures.

    ``paper``: clustering accuracy (%), NMI, purity, classification accuracy (%).
    """

    title: str
    clusterings: list[Scores]
    classifications: list[Scores]
    paper: tuple[float | None, ...] | None = None


def table_1(rows: Sequence[RowResult], data_title: str, paper_title: str) -> Table:
    """The paper's Table 1: three accuracies in percent, of the best seed each."""
    entropy, pairs = rows
    return [
        ["", data_title, f"paper, {paper_title}"],
        ["Classification", _best(entropy.classifications), _paper(entropy, 3)],
        ["Clustering", _best(pairs.clusterings), _paper(pairs, 0)],
        ["Warm Start Classification", _best(pairs.classifications), _paper(pairs, 3)],
    ]


def best_table(rows: Sequence[RowResult], nmi: str = "nmi") -> Table:
    """The columns of the paper's Tables 2-5 and more, of the best seeds, beside the paper's.

    A clustering's columns are all of the seed with the best clustering accuracy; the classification
    accuracy is that of the best classification.
    """
    heading = [
        "",
        "Clus. acc.",
        "chance",
        "fitted on train",
        "NMI",
        "AMI",
        "Purity",
        "Clusters",
        "Class. acc.",
        *("paper: clus.", "NMI", "purity", "class."),
    ]
    lines = [heading]
    for row in rows:
        cells = ["-"] * 7
        if row.clusterings:
            best = max(row.clusterings, key=_accuracy)
            cells = [
                _with_interval(best["accuracy"]),
                _percent(best["chance_accuracy"]),
                _percent(best["train_fitted_accuracy"]["value"]),
                f"{best[nmi]:.3f}",
                f"{best['ami']:.3f}",
                f"{best['purity']:.3f}",
                f"{best['clusters_in_use']} of {len(best['confusion'])}",
            ]
        last = "-"
        if row.classifications:
            last = _with_interval(max(row.classifications, key=_accuracy)["accuracy"])
        lines.append([row.title, *cells, last, *(_paper(row, i) for i in range(4))])
    return lines


def mean_table(rows: Sequence[RowResult], nmi: str = "nmi") -> Table:
    """Mean and standard deviation over the seeds."""
    columns: dict[str, tuple[int, Callable[[Scores], float]]] = {  # digits, and how to get it
        "Clus. acc.": (2, lambda s: 100 * _accuracy(s)),
        "chance": (2, lambda s: 100 * float(s["chance_accuracy"])),
        "fitted on train": (2, lambda s: 100 * float(s["train_fitted_accuracy"]["value"])),
        "NMI": (3, lambda s: float(s[nmi])),
        "AMI": (3, lambda s: float(s["ami"])),
        "Purity": (3, lambda s: float(s["purity"])),
        "Clusters": (1, lambda s: float(s["clusters_in_use"])),
    }
    lines = [["", "seeds", *columns, "Class. acc."]]
    for row in rows:
        cells = [_mean([get(s) for s in row.clusterings], n) for n, get in columns.values()]
        last = _mean([100 * _accuracy(s) for s in row.classifications], 2)
        lines.append([row.title, str(len(row.classifications)), *cells, last])
    return lines


def scores_table(scores: Scores) -> Table:
    """All scores of one run."""
    lines = [["", "test set"], ["Accuracy", _with_interval(scores["accuracy"])]]
    if "nmi" in scores:
        lines += [
            ["chance", _percent(scores["chance_accuracy"])],
            ["fitted on train", _with_interval(scores["train_fitted_accuracy"])],
            ["NMI, geometric", f"{scores['nmi']:.4f}"],
            ["NMI, arithmetic", f"{scores['nmi_arithmetic']:.4f}"],
            ["AMI, geometric", f"{scores['ami']:.4f}"],
            ["Purity", f"{scores['purity']:.4f}"],
            ["Clusters in use", str(scores["clusters_in_use"])],
        ]
    return [*lines, ["n", str(scores["accuracy"]["n"])]]


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


def as_markdown(table: Table) -> str:
    """A Markdown table."""
    heading, *rows = table
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heading, rule, *rows])


def _accuracy(scores: Scores) -> float:
    return float(scores["accuracy"]["value"])


def _best(scores: Sequence[Scores]) -> str:
    return _with_interval(max(scores, key=_accuracy)["accuracy"]) if scores else "-"


def _paper(row: RowResult, column: int) -> str:
    value = row.paper[column] if row.paper else None
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _with_interval(accuracy: dict[str, Any]) -> str:
    low, high = 100 * accuracy["low"], 100 * accuracy["high"]
    return f"{_percent(accuracy['value'])} [{low:.1f}, {high:.1f}]"


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"
