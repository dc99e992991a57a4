"""What each idea is worth, and the instruction sets and threads: ``python -m benchmarks.ablation``.

ideas       the library without one idea of csrc/cpu/ideas.h at a time; the first time, and after
            each change of the kernels, they are compiled: minutes
processor   the library with other instruction sets, and with one thread

Each variant is a process of its own, and all take turns in the same interleaved rounds. They must
agree in the loss and in the gradient, but for rounding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import logits, table, variants
from benchmarks.__main__ import parse_size
from benchmarks.pair_kl_hinge import PARTS, Case
from benchmarks.processes import Ask, RemoteTimer, Variant, start
from benchmarks.record import CAPABILITIES, Record, Result, capability, machine
from benchmarks.timing import Step, interleave

SIZES = ((1024, 34), (4096, 10), (4096, 128), (1024, 500))
ALL = "pairloss"
# Relative errors, of the loss and in the norm of the gradient. A pair that rounding moves across
# the margin changes the gradient by its part.
AGREEMENT = (1e-5, 1e-3)
# Ideas that not all kernels have, or that are not the same in all.
KERNELS = {
    "coarse_first": ("avx512", "amx"),
    "subset_sums": ("default", "avx2", "avx512"),
    "matrix_unit": ("amx",),
}


def kernels_of_ideas(best: str) -> dict[str, tuple[str, ...]]:
    """The capabilities on which an idea is looked at where ``best`` is the best, by idea.

    With a matrix unit, also the kernels without it, for what is another thing there.
    """
    here = ("amx", "avx512") if best == "amx" else (best,)
    found = {
        idea: tuple(name for name in here if name in KERNELS[idea]) if idea in KERNELS else (best,)
        for idea in variants.read_ideas()
    }
    return {idea: kernels for idea, kernels in found.items() if kernels}


def make_ideas(threads: int) -> dict[str, Variant]:
    """The whole library, and what it lacks; on other kernels, beside the whole library on those."""
    best = capability()
    ideas = kernels_of_ideas(best)
    folders = variants.build(ideas)
    found = {}
    for kernels in dict.fromkeys(name for names in ideas.values() for name in names):
        suffix = "" if kernels == best else f", {kernels}"
        whole = Variant("pairloss", threads, kernels, folders[variants.WHOLE])
        found[f"{ALL}{suffix}"] = whole
        for idea in (idea for idea, names in ideas.items() if kernels in names):
            found[f"without {idea}{suffix}"] = replace(whole, folder=folders[idea])
    return found


def make_processor(threads: int) -> dict[str, Variant]:
    found = {ALL: Variant("pairloss", threads)}
    for name in reversed(CAPABILITIES):
        found[name] = Variant("pairloss", threads, name)
    found["1 thread"] = Variant("pairloss", 1)
    found["eager"] = Variant("eager", threads)
    found["eager, 1 thread"] = Variant("eager", 1)
    return found


SUBJECTS = {"ideas": make_ideas, "processor": make_processor}


def base_of(name: str, names: Sequence[str]) -> str:
    """What a variant is compared with: the whole library on the same kernels, else the first."""
    _, comma, kernels = name.partition(", ")
    same = f"{ALL}{comma}{kernels}"
    return same if same in names else names[0]


def check_agreement(case: Case, ask: Mapping[str, Ask]) -> None:
    """Raises RuntimeError where a variant's loss or gradient is not that of the first."""
    names = list(ask)
    expected = [np.asarray(part, np.float64) for part in ask[names[0]]("result")]
    for name in names[1:]:
        for found, wanted, bound in zip(ask[name]("result"), expected, AGREEMENT, strict=False):
            error = np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30)
            if not error <= bound:
                raise RuntimeError(f"{case} {name}: differs from {names[0]} by {error:.2g}")


def measure(case: Case, ask: Mapping[str, Ask], seconds: float) -> list[Result]:
    batch = (tensor.numpy() for tensor in logits.make(case))
    setting = (case.what, *batch)
    paces = {name: question(setting) for name, question in ask.items()}
    check_agreement(case, ask)
    steps = {name: Step(question) for name, question in ask.items()}
    samples = interleave(RemoteTimer(), steps, paces, seconds)
    return [Result(case, name, samples[name], paces[name].calls) for name in ask]


def results_table(results: Sequence[Result], markdown: bool = False) -> str:
    """A row for each variant, a column for each kind of logits.

    A cell has, in the order of the sizes, how many times as long the variant takes as what it is
    compared with, or the time of that.
    """
    names = list(dict.fromkeys(result.method for result in results))
    kinds = list(dict.fromkeys(result.case.logits for result in results))
    medians = {(result.method, result.case): result.median for result in results}

    def cell(name: str, case: Case) -> str:
        base = base_of(name, names)
        if name == base:
            return table.duration(medians[name, case])
        return f"{medians[name, case] / medians[base, case]:.2f}x"

    def cells(name: str, kind: str) -> str:
        cases = [case for method, case in medians if method == name and case.logits == kind]
        return ", ".join(cell(name, case) for case in cases)

    sizes = ", ".join(dict.fromkeys(f"({r.case.rows}, {r.case.columns})" for r in results))
    rows = [(name, *(cells(name, kind) for kind in kinds)) for name in names]
    return f"At {sizes}:\n\n" + table.render(rows, ("variant", *kinds), markdown)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("subject", nargs="?", choices=SUBJECTS, default="ideas")
    add("--sizes", nargs="+", type=parse_size, default=SIZES, metavar="NxK")
    add("--logits", nargs="+", choices=logits.KINDS, default=logits.KINDS)
    add("--what", choices=PARTS, default="full")
    add("--seconds", type=float, default=8.0, help="of rounds for each case")
    add("--threads", type=int, default=torch.get_num_threads())
    add(
        "--processor-time",
        action="store_true",
        help="in place of the clock's, for a busy machine; with one thread: others wait busily",
    )
    add("--variants", nargs="+", metavar="NAME", help="instead of all")
    add("--json", type=Path, metavar="PATH")
    add("--markdown", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    chosen = SUBJECTS[arguments.subject](arguments.threads)
    for name in arguments.variants or ():
        if name not in chosen:
            expected = ", ".join(chosen)
            print(f"--variants: expected some of {expected}; got {name!r}", file=sys.stderr)
            return 2
    chosen = {name: chosen[name] for name in arguments.variants or chosen}
    chosen = {
        name: replace(variant, processor_time=arguments.processor_time)
        for name, variant in chosen.items()
    }
    kept = ("subject", "threads", "seconds", "processor_time")
    settings = {name: getattr(arguments, name) for name in kept}
    results: list[Result] = []
    record = Record({**machine(), "threads": arguments.threads}, settings, results)
    with ExitStack() as stack:
        ask = {name: stack.enter_context(start(variant)) for name, variant in chosen.items()}
        for name, variant in chosen.items():
            if variant.capability not in (None, ask[name](None)):
                print(f"{name}: not on this machine")
                del ask[name]
        for rows, columns in arguments.sizes:
            for kind in arguments.logits:
                case = Case(rows, columns, kind, arguments.what)
                results += measure(case, ask, arguments.seconds)
                if arguments.json:  # what is done is kept, whatever happens to the rest
                    record.save(arguments.json)
                print(f"{case} done", file=sys.stderr, flush=True)
    print(results_table(results, arguments.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
