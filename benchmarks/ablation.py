"""What the instruction sets and the threads are worth: ``python -m benchmarks.ablation``.

The library reads its environment once, so each variant is a process of its own; all take part in
the same interleaved rounds. A new variant is a line in :func:`make_variants`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import logits, table
from benchmarks.__main__ import parse_size
from benchmarks.pair_kl_hinge import METHODS, PARTS, Case, make_step
from benchmarks.record import CAPABILITIES, Record, Result, capability, machine
from benchmarks.timing import Step, Timer, interleave

SIZES = ((16, 10), (1024, 34), (1024, 500), (4096, 128))
# Threads of the process before wait for work in a busy loop, for some milliseconds.
SETTLE_SECONDS = 0.02


class Variant(NamedTuple):
    method: str
    threads: int
    environment: Mapping[str, str] = {}


def make_variants(threads: int) -> dict[str, Variant]:
    found = {"pairloss": Variant("pairloss", threads)}
    for name in reversed(CAPABILITIES):
        found[name] = Variant("pairloss", threads, {"PAIRLOSS_CPU_CAPABILITY": name})
    found["1 thread"] = Variant("pairloss", 1)
    found["eager"] = Variant("eager", threads)
    found["eager, 1 thread"] = Variant("eager", 1)
    return found


@contextmanager
def start(variant: Variant) -> Iterator[Callable[[Any], Any]]:
    """The variant's process, as a function that sends a question and gives the answer."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, variant), daemon=True)
    before = dict(os.environ)
    os.environ.update(variant.environment)
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    there.close()

    def ask(question: Any) -> Any:
        here.send(question)
        answer = here.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    try:
        yield ask
    finally:
        here.close()
        process.join()


def _serve(connection: Connection, variant: Variant) -> None:
    """Answers None with its capability, a case with its pace, calls with a sample of them."""
    torch.set_num_threads(variant.threads)
    timer = Timer()
    step = Step(lambda: None)
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        answer: Any
        try:
            if question is None:
                answer = capability()
            elif isinstance(question, Case):
                step = make_step(METHODS[variant.method], question.what, *logits.make(question))
                answer = timer.warm_up(step)
            else:
                time.sleep(SETTLE_SECONDS)
                step.prepared()()
                answer = timer.sample(step, question)
        except Exception as error:
            answer = error
        connection.send(answer)


class _RemoteTimer(Timer):
    """Takes its samples in the processes."""

    def sample(self, step: Step, calls: int = 1) -> float:
        return float(step.run(calls))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", nargs="+", type=parse_size, default=SIZES, metavar="NxK")
    add("--logits", choices=logits.KINDS, default="half")
    add("--what", choices=PARTS, default="full")
    add("--seconds", type=float, default=8.0, help="of rounds for each size")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--variants", nargs="+", metavar="NAME")
    add("--json", type=Path, metavar="PATH")
    add("--markdown", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    variants = make_variants(arguments.threads)
    if arguments.variants:
        variants = {name: variants[name] for name in arguments.variants}
    facts = machine()
    rows: list[tuple[str, ...]] = []
    results: list[Result] = []
    with ExitStack() as stack:
        ask = {name: stack.enter_context(start(v)) for name, v in variants.items()}
        for name in [name for name in ask if name in CAPABILITIES]:
            if ask[name](None) != name:
                print(f"{name}: not on this machine")
                del ask[name]
        for count, columns in arguments.sizes:
            case = Case(count, columns, arguments.logits, arguments.what)
            paces = {name: question(case) for name, question in ask.items()}
            steps = {name: Step(question) for name, question in ask.items()}
            samples = interleave(_RemoteTimer(), steps, paces, arguments.seconds)
            found = [Result(case, name, samples[name], paces[name].calls) for name in ask]
            results += found
            for result in found:
                rows.append(
                    (
                        str(case) if result is found[0] else "",
                        result.method,
                        table.duration(result.median),
                        f"{100 * result.spread:.0f}%",
                        f"{result.median / found[0].median:.2f}x",
                    )
                )
    header = ("case", "variant", "median", "spread", f"time / {next(iter(variants))}")
    print(table.render(rows, header, arguments.markdown))
    if arguments.json:
        settings = {"variants": {name: variant._asdict() for name, variant in variants.items()}}
        Record(facts, settings, results).save(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
