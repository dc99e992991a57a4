"""Runs the methods on a case: warm-up, agreement, interleaved rounds, memory."""

from __future__ import annotations

import gc
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from benchmarks import logits, memory
from benchmarks.pair_kl_hinge import MARGIN, METHODS, Case, Method, make_step
from benchmarks.record import Result
from benchmarks.timing import Pace, Step, Timer, interleave

OURS = "pairloss"
# A pilot has about this many N^2 K: some milliseconds for a slow method.
PILOT_WORK = 4e6
MIN_PILOT_ROWS = 32
# What hangs, or compiles for longer than so many seconds, is given up.
LONGEST_START = 90.0
# Methods must agree in the loss; a benchmark of something else would be worth nothing.
AGREEMENT = {"float64": 1e-6, "float32": 1e-4, "float16": 0.05, "bfloat16": 0.05}


@dataclass(frozen=True)
class Options:
    """How much a run may take.

    Attributes:
        seconds: of interleaved rounds for a case; the slowest methods get three rounds even so.
        patience: a competitor that would take more seconds a call is given up.
        budget: seconds after the run's start, from which on no more competitor is started; what
            ours is compared with (eager, compile) always is.
        memory_bytes: a method that would take more is given up.
        memory: whether peak memory is measured.
        cache: where the logits of real trainings are kept.
    """

    seconds: float = 4.0
    patience: float = 2.0
    budget: float | None = None
    memory_bytes: float = 4.0 * 2**30
    memory: bool = True
    cache: Path = logits.CACHE


class GivenUpError(Exception):
    """Why a method is not timed on a case."""


def run_case(
    case: Case, methods: Sequence[Method], options: Options, start: float | None = None
) -> list[Result]:
    """A result for each of ``methods`` that is meant for the case, in their order.

    ``start`` is when the budget of the options began, in ``time.monotonic()``; by default now.
    """
    start = time.monotonic() if start is None else start
    deadline = math.inf if options.budget is None else start + options.budget
    _forget_earlier_cases()
    batch = logits.make(case, options.cache)
    timer = Timer.for_device(batch[0].device)
    results = {m.name: Result(case, m.name) for m in methods if m.is_for(case)}
    expected = METHODS[OURS].make()(*batch, MARGIN).item()
    steps: dict[str, Step] = {}
    paces: dict[str, Pace] = {}
    for name, result in results.items():
        # Whatever goes wrong in a method is a line in the table, and the others go on.
        try:
            with _at_most(LONGEST_START):
                steps[name], paces[name] = _start(
                    METHODS[name], case, batch, options, timer, expected, deadline
                )
        except Exception as error:
            result.problem = describe(error)

    for name, samples in interleave(timer, steps, paces, options.seconds).items():
        results[name].seconds = samples
        results[name].calls = paces[name].calls
    for name, step in steps.items():
        if options.memory and METHODS[name].weighed:
            _measure_memory(results[name], step, batch)
    return list(results.values())


def _start(
    method: Method,
    case: Case,
    batch: tuple[Tensor, Tensor],
    options: Options,
    timer: Timer,
    expected: float,
    deadline: float,
) -> tuple[Step, Pace]:
    peak = method.peak_bytes(case)
    if peak > options.memory_bytes:
        bound = options.memory_bytes / 2**30
        raise GivenUpError(f"would take about {peak / 2**30:.3g} GiB, more than {bound:.3g}")
    if method.pilot:
        if time.monotonic() > deadline:
            raise GivenUpError(f"the run's budget of {options.budget:.3g} s was used up")
        seconds = _extrapolated(method, case, batch, timer)
        if seconds > options.patience:
            raise GivenUpError(f"would take about {seconds:.3g} s a call")
    step = make_step(method, case.what, *batch)
    pace = timer.warm_up(step)
    if not method.yardstick and method.name != OURS:
        _check_agreement(method, case, step, expected)
    return step, pace


def _extrapolated(method: Method, case: Case, batch: tuple[Tensor, Tensor], timer: Timer) -> float:
    """Seconds of a call, from two small batches: a part that stays, and one that grows as N^2."""
    few = max(MIN_PILOT_ROWS, round(math.sqrt(PILOT_WORK / case.columns)))
    if 2 * few >= case.rows:
        return 0.0
    some, more = (
        timer.warm_up(
            make_step(method, case.what, *(tensor[:rows].clone() for tensor in batch))
        ).seconds
        for rows in (few, 2 * few)
    )
    growth = max(more - some, 0.0) / (3 * few**2)
    return some + growth * (case.rows**2 - few**2)


def _check_agreement(method: Method, case: Case, step: Step, expected: float) -> None:
    if case.what == "backward":
        return
    result = step.run()
    loss = (result[0] if isinstance(result, tuple) else result).item() / method.scale(case.rows)
    tolerance = AGREEMENT[case.dtype] if method.agreement is None else method.agreement
    if not math.isclose(loss, expected, rel_tol=tolerance, abs_tol=1e-12):
        raise GivenUpError(f"its loss is {loss:.7g}, that of {OURS} {expected:.7g}")


def _measure_memory(result: Result, step: Step, batch: tuple[Tensor, Tensor]) -> None:
    method, case = METHODS[result.method], result.case
    try:
        if case.device == "cuda":
            result.peak_bytes = memory.cuda_peak(step)
        else:
            result.peak_bytes = memory.cpu_peak(method, case.what, *batch)
    except Exception as error:
        result.peak_problem = describe(error)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises GivenUpError after so many seconds, as soon as Python is asked; main thread only."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise GivenUpError(f"took more than {seconds:.3g} s to start")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _forget_earlier_cases() -> None:
    torch.compiler.reset()  # they would count towards its limit of recompilations
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe(error: Exception) -> str:
    """The first line of the message, with the kind of error where it is not one of ours."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, (GivenUpError, memory.NotMeasuredError)):
        return text
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    return f"{type(error).__name__}: {text}"[:200]
