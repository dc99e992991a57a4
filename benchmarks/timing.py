"""Interleaved timing, A B C A B C ... in one process: a slow spell of the machine hits all."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

# One sample lasts at least this long: shorter calls are repeated within a sample, so that they find
# the caches as they left them, as in any loop that only times one thing.
MIN_SAMPLE_SECONDS = 1e-2
MAX_CALLS = 1000
MIN_ROUNDS, MAX_ROUNDS = 3, 50


class Step(NamedTuple):
    """What is timed: ``run()``; or ``run(prepare())``, of which only ``run`` is on the clock."""

    run: Callable[..., Any]
    prepare: Callable[[], Any] | None = None

    def prepared(self) -> Callable[[], Any]:
        return self.run if self.prepare is None else functools.partial(self.run, self.prepare())


class Pace(NamedTuple):
    """How long a call takes, by a first look, and so how many make one sample."""

    seconds: float
    calls: int


def _nothing() -> None:
    pass


class Timer:
    """Seconds per call. ``synchronize`` waits for what ``run`` may leave going on a device."""

    def __init__(
        self,
        synchronize: Callable[[], None] = _nothing,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._synchronize = synchronize
        self._clock = clock

    @staticmethod
    def for_device(device: torch.device) -> Timer:
        return Timer(torch.cuda.synchronize) if device.type == "cuda" else Timer()

    def sample(self, step: Step, calls: int = 1) -> float:
        if step.prepare is None:
            self._synchronize()
            start = self._clock()
            for _ in range(calls):
                step.run()
            self._synchronize()
            return (self._clock() - start) / calls
        total = 0.0
        for _ in range(calls):
            call = step.prepared()
            self._synchronize()
            start = self._clock()
            call()
            self._synchronize()
            total += self._clock() - start
        return total / calls

    def warm_up(self, step: Step) -> Pace:
        """Runs it until it is compiled and its pace is known."""
        self.sample(step)
        seconds = self.sample(step)
        if seconds < MIN_SAMPLE_SECONDS:
            seconds = self.sample(step, calls=10)
        calls = math.ceil(MIN_SAMPLE_SECONDS / max(seconds, 1e-9))
        return Pace(seconds, min(calls, MAX_CALLS))


def rounds_within(paces: Mapping[str, Pace], seconds: float) -> dict[str, int]:
    """Every step gets an equal share of ``seconds``, and at least three rounds."""
    share = seconds / max(len(paces), 1)
    return {
        name: max(MIN_ROUNDS, min(MAX_ROUNDS, int(share / max(pace.seconds * pace.calls, 1e-9))))
        for name, pace in paces.items()
    }


def interleave(
    timer: Timer, steps: Mapping[str, Step], paces: Mapping[str, Pace], seconds: float
) -> dict[str, list[float]]:
    """Samples of every step, in rounds. Steps with fewer rounds sit out some, evenly spread."""
    rounds = rounds_within(paces, seconds)
    total = max(rounds.values(), default=0)
    samples: dict[str, list[float]] = {name: [] for name in paces}
    for turn in range(total):
        for name, wanted in rounds.items():
            if (turn + 1) * wanted // total > turn * wanted // total:
                samples[name].append(timer.sample(steps[name], paces[name].calls))
    return samples


def spread(samples: list[float]) -> float:
    """The distance between the quartiles, relative to the median."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / middle
