"""Variants of the library side by side: a process for each, all in the same interleaved rounds.

What a variant is made of, a library or the environment, is read once by a process.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import pairloss
from benchmarks.pair_kl_hinge import METHODS, make_step
from benchmarks.record import capability
from benchmarks.timing import Step, Timer

# Threads of the process before wait for work in a busy loop, for some milliseconds.
SETTLE_SECONDS = 0.02

Ask = Callable[[Any], Any]


@dataclass(frozen=True)
class Variant:
    """A method in a process of its own.

    Attributes:
        method: of :data:`benchmarks.pair_kl_hinge.METHODS`.
        threads: of the process.
        capability: the instruction set, PAIRLOSS_CPU_CAPABILITY; by default the machine's best.
        folder: holds the package ``pairloss``; by default the one that is imported here.
        processor_time: of all its threads, in place of the clock's: for a busy machine.
    """

    method: str
    threads: int
    capability: str | None = None
    folder: Path | None = None
    processor_time: bool = False

    @property
    def environment(self) -> Mapping[str, str]:
        return {} if self.capability is None else {"PAIRLOSS_CPU_CAPABILITY": self.capability}


@contextmanager
def start(variant: Variant) -> Iterator[Ask]:
    """The variant's process, as a function that sends a question and gives the answer.

    The questions: None, for its capability; what is timed, logits and labels (arrays of NumPy),
    for its pace there; "result", for what a call gives, as arrays; a number, for a sample of so
    many calls.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, variant), daemon=True)
    environment, path = dict(os.environ), list(sys.path)
    os.environ.update(variant.environment)
    if variant.folder is not None:
        sys.path.insert(0, str(variant.folder))  # which the process begins with
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
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
    torch.set_num_threads(variant.threads)
    timer = Timer(clock=time.process_time if variant.processor_time else time.perf_counter)
    step = Step(lambda: None)
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        answer: Any
        try:
            if question is None:
                _check_package(variant)
                answer = capability()
            elif isinstance(question, tuple):
                what, *batch = question
                step = make_step(METHODS[variant.method], what, *map(torch.from_numpy, batch))
                answer = timer.warm_up(step)
            elif question == "result":
                result = step.prepared()()
                tensors = result if isinstance(result, tuple) else (result,)
                answer = tuple(tensor.detach().numpy() for tensor in tensors)
            else:
                time.sleep(SETTLE_SECONDS)
                step.prepared()()
                answer = timer.sample(step, question)
        except Exception as error:
            answer = error
        connection.send(answer)


def _check_package(variant: Variant) -> None:
    found = Path(pairloss.__file__).parents[1]
    if variant.folder is not None and found != variant.folder:
        raise RuntimeError(f"expected the package of {variant.folder}, got that of {found}")


class RemoteTimer(Timer):
    """Takes its samples in the processes: their steps are questions."""

    def sample(self, step: Step, calls: int = 1) -> float:
        return float(step.run(calls))
