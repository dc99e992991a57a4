"""Tables, aligned for a terminal or in markdown, and how figures are written in them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.record import Result, over_products, speedup

HEADER = ("case", "method", "median", "spread", "speed-up", "products", "pairs/s", "GF/s", "memory")
LEGEND = """\
median     of a call, over interleaved rounds; spread: between the quartiles, of the median
speed-up   over the better of eager and compile, both in the form of a matrix product
products   speed over the matrix products (sgemm) that the plain form takes, three for a full step
pairs/s    unordered pairs; GF/s: 6 N^2 K (loss and gradient of the plain form) over the time
memory     the most a call takes beyond its inputs, its results included"""


def render(rows: Sequence[Sequence[str]], header: Sequence[str], markdown: bool = False) -> str:
    """The first two columns to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    rules = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    rule = line(rules) if markdown else line(["-" * width for width in widths])
    return "\n".join([line(header), rule, *map(line, rows)])


def results_table(results: Sequence[Result], markdown: bool = False) -> str:
    """One row for each result, and below it the methods that gave none, with the reason."""
    rows = []
    case = None
    for result in results:
        rows.append((str(result.case) if result.case != case else "", *_cells(result, results)))
        case = result.case
    problems = [f"{r.case}  {r.method}: {r.problem}" for r in results if r.problem]
    problems += [
        f"{r.case}  {r.method}, memory: {r.peak_problem}" for r in results if r.peak_problem
    ]
    text = render(rows, HEADER, markdown)
    if problems:
        text += "\n\nNot measured:\n" + "\n".join(f"- {problem}" for problem in problems)
    return text


def _cells(result: Result, results: Sequence[Result]) -> tuple[str, ...]:
    peak = "-" if result.peak_bytes is None else size(result.peak_bytes)
    if not result.seconds:
        return (result.method, "-", "-", "-", "-", "-", "-", peak)
    ratios = speedup(result, results), over_products(result, results)
    return (
        result.method,
        duration(result.median),
        f"{100 * result.spread:.0f}%",
        *("-" if ratio is None else f"{figure(ratio)}x" for ratio in ratios),
        scaled(result.pairs_per_second),
        figure(result.gflops),
        peak,
    )


def figure(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{figure(seconds / factor)} {unit}"
    return f"{figure(seconds / 1e-6)} us"


def scaled(value: float) -> str:
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{figure(value / factor)} {unit}"
    return figure(value)


def size(count: int) -> str:
    if count < 2**20:
        return "< 1 MiB"
    return f"{figure(count / 2**30)} GiB" if count >= 2**30 else f"{figure(count / 2**20)} MiB"
