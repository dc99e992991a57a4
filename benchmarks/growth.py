"""Time against N at a fixed K, with the fitted exponent: ``python -m benchmarks.growth``.

Every method that looks at all pairs grows as N^2. Pairs that need no look (similar ones, and blocks
that are certified to lie inside or beyond the margin) make the growth of ours on the logits of a
late training slower than that.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import logits, table
from benchmarks.pair_kl_hinge import METHODS, Case
from benchmarks.record import Record, Result, machine
from benchmarks.runner import Options, run_case

ROWS = tuple(1024 * 2**power for power in range(8))  # 1k to 128k
METHOD_NAMES = ("pairloss", "eager", "compile")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", nargs="+", type=int, default=ROWS, metavar="N")
    add("--columns", type=int, default=34, metavar="K")
    add("--logits", nargs="+", choices=logits.KINDS, default=("random", "real-late"))
    add("--methods", nargs="+", choices=METHODS, default=METHOD_NAMES, metavar="NAME")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--seconds", type=float, default=3.0, help="of rounds for each N")
    add("--no-memory", action="store_true")
    add("--json", type=Path, metavar="PATH")
    add("--plot", type=Path, metavar="PNG")
    add("--markdown", action="store_true")
    return parser.parse_args(argv)


def exponent(points: list[tuple[float, float]]) -> float:
    """The slope of log(time) on log(N), by least squares over the larger half of the sizes.

    The smaller ones hold the time that does not grow.
    """
    points = sorted(points)[(len(points) - 1) // 2 :]
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0]) if len(points) > 1 else math.nan


def curves(results: list[Result]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(N, seconds) of each kind of logits and method."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for result in results:
        if result.seconds:
            points = found.setdefault((result.case.logits, result.method), [])
            points.append((float(result.case.rows), result.median))
    return found


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    options = replace(Options(), seconds=arguments.seconds, memory=not arguments.no_memory)
    methods = [METHODS[name] for name in arguments.methods]
    facts = machine(arguments.device)
    results: list[Result] = []
    for kind in arguments.logits:
        for rows in arguments.rows:
            case = Case(rows, arguments.columns, kind, device=arguments.device)
            results += run_case(case, methods, options)
            print(f"{case} done", file=sys.stderr, flush=True)
    print(table.results_table(results, arguments.markdown))

    found = curves(results)
    rows_of_table = [
        (kind, name, f"{max(n for n, _ in points):.0f}", f"{exponent(points):.2f}")
        for (kind, name), points in found.items()
    ]
    print("\n" + table.render(rows_of_table, ("logits", "method", "up to N", "exponent")))
    if arguments.json:
        Record(facts, {"columns": arguments.columns}, results).save(arguments.json)
    if arguments.plot:
        from benchmarks import plots

        named = [
            (f"{name}, {kind}: N^{exponent(points):.2f}", points)
            for (kind, name), points in found.items()
        ]
        title = f"Loss and gradient at K = {arguments.columns}"
        plots.loglog(arguments.plot, named, title, ("N", "s"), arguments.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
