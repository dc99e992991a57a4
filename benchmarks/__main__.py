"""The loss's speed and memory beside the alternatives: ``python -m benchmarks``, ``make bench``."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import ceiling, logits, pair_kl_hinge, table
from benchmarks.pair_kl_hinge import METHODS, PARTS, Case, Size
from benchmarks.record import Record, Result, machine, speedup
from benchmarks.runner import Options, run_case

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float64", "float16", "bfloat16")
# Seconds, after which a run of the usual cases starts no more competitor.
BUDGET = 220.0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="See also: python -m benchmarks.growth, benchmarks.accuracy, benchmarks.ablation "
        "and benchmarks.compare (what `make bench-compare` runs).",
    )
    add = parser.add_argument
    add("--sizes", nargs="+", type=parse_size, metavar="NxK", help="instead of the usual sizes")
    add("--full", action="store_true", help="more sizes, and all logits")
    add("--quick", action="store_true", help="seconds instead of minutes: shows that it works")
    add("--device", choices=DEVICES, default="cpu")
    add("--dtype", choices=DTYPES, default="float32")
    add(
        "--logits",
        nargs="+",
        choices=("all", "real", *logits.KINDS),
        help="random (default); half: half of the dissimilar pairs are active; real: from a "
        "training, early, in the middle and late (the first time it is trained: minutes)",
    )
    add("--what", choices=PARTS, default="full", help="full (default): forward and backward")
    add("--methods", nargs="+", choices=METHODS, metavar="NAME", help="; ".join(METHODS))
    add("--without", nargs="+", choices=METHODS, metavar="NAME", default=[], help="of these none")
    add("--seconds", type=float, help="of rounds for each case")
    add("--patience", type=float, help="give a competitor up that takes more seconds a call")
    add(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="start no more competitor after so many (default: 220 for the usual cases, which "
        "then end within five minutes on two cores; else none)",
    )
    add("--memory-bound", type=float, metavar="GIB", help="give up what would take more")
    add("--no-memory", action="store_true", help="do not measure memory")
    add("--threads", type=int, help="of the CPU")
    add("--json", type=Path, metavar="PATH", help="write the record with all samples")
    add("--plot", type=Path, metavar="DIR", help="write pictures of time and memory")
    add("--markdown", action="store_true", help="print the table in markdown")
    return parser.parse_args(argv)


def parse_size(text: str) -> Size:
    try:
        rows, columns = map(int, text.replace(",", "x").split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NxK, as in 1024x34, got {text!r}") from None
    if rows < 2 or columns < 1:
        raise argparse.ArgumentTypeError(f"expected N >= 2 and K >= 1, got {text!r}")
    return rows, columns


def make_cases(arguments: argparse.Namespace) -> list[Case]:
    kinds = arguments.logits or (["all"] if arguments.full else ["random"])
    chosen = {"all": logits.KINDS, "real": logits.REAL}
    kinds = [kind for name in kinds for kind in chosen.get(name, (name,))]
    sizes = arguments.sizes or _usual_sizes(arguments)
    return [
        Case(rows, columns, kind, arguments.what, arguments.dtype, arguments.device)
        for rows, columns in sizes
        for kind in kinds
        # A network of every width would have to be trained.
        if arguments.sizes or kind not in logits.REAL or (rows, columns) in pair_kl_hinge.REAL_SIZES
    ]


def _usual_sizes(arguments: argparse.Namespace) -> tuple[Size, ...]:
    if arguments.quick:
        return pair_kl_hinge.QUICK_SIZES
    sizes = pair_kl_hinge.SIZES
    if arguments.full or arguments.logits:
        sizes += pair_kl_hinge.MORE_SIZES
    if arguments.device != "cpu":
        sizes += pair_kl_hinge.MORE_CUDA_SIZES
    return sizes


def make_options(arguments: argparse.Namespace) -> Options:
    usual = Options(seconds=0.2, patience=1.0) if arguments.quick else Options()
    is_usual = not (arguments.full or arguments.sizes or arguments.logits)
    budget = BUDGET if arguments.budget is None and is_usual else arguments.budget
    bound = usual.memory_bytes
    if arguments.memory_bound is not None:
        bound = arguments.memory_bound * 2**30
    elif arguments.device != "cpu":
        bound = 0.8 * torch.cuda.mem_get_info()[0]
    return Options(
        seconds=usual.seconds if arguments.seconds is None else arguments.seconds,
        patience=usual.patience if arguments.patience is None else arguments.patience,
        budget=budget,
        memory_bytes=bound,
        memory=not arguments.no_memory,
    )


def main(argv: list[str] | None = None) -> int:
    start = time.monotonic()
    arguments = parse_arguments(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    options = make_options(arguments)
    names = arguments.methods or METHODS
    methods = [METHODS[name] for name in names if name not in arguments.without]
    facts = machine(arguments.device)
    facts["matrix multiply"] = ceiling.measure(arguments.device)
    for name, value in facts.items():
        print(f"{name:<17}{_described(value)}")
    if facts["load"] > 0.5:
        print(f"Other programs are running (load {facts['load']}): the figures will be off.")
    print(flush=True)

    settings = {**vars(arguments), **asdict(options)}
    for name in ("json", "plot", "markdown", "cache"):  # where it goes makes no difference
        del settings[name]
    results: list[Result] = []
    record = Record(facts, settings, results)
    sizes: set[Size] = set()
    for case in make_cases(arguments):
        # Competitors look at all pairs, whatever the logits: once for each size.
        again = (case.rows, case.columns) in sizes
        sizes.add((case.rows, case.columns))
        wanted = [method for method in methods if not (again and method.pilot)]
        results += run_case(case, wanted, options, start)
        _progress([result for result in results if result.case == case])
        if arguments.json:  # what is done is kept, whatever happens to the rest
            record.save(arguments.json)
    print(table.results_table(results, arguments.markdown))
    print(f"\n{table.LEGEND}")

    if arguments.json:
        print(f"\nThe record is in {arguments.json}.")
    if arguments.plot:
        from benchmarks import plots

        for path in plots.draw(record, arguments.plot):
            print(f"A picture is in {path}.")
    return int(any(result.problem for result in results if result.method.startswith("pairloss")))


def _progress(results: list[Result]) -> None:
    """A line on stderr, so that a run of minutes shows how far it is."""
    cells = [
        f"{result.method} {table.duration(result.median)}"
        + (f" ({ratio:.3g}x)" if (ratio := speedup(result, results)) else "")
        for result in results
        if result.seconds
    ]
    print(f"{results[0].case}: {', '.join(cells)}", file=sys.stderr, flush=True)


def _described(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name} {table.figure(speed)} GF/s" for name, speed in value.items())


if __name__ == "__main__":
    sys.exit(main())
