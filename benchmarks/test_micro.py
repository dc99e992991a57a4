"""Latency floor and kernels at fixed sizes: ``pytest benchmarks/test_micro.py``.

Before each round, off the clock, the matrix products of the same size are timed; compare.py
compares runs by the ratio of the two.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import logits
from benchmarks.pair_kl_hinge import METHODS, Case, make_step
from benchmarks.timing import Timer

ROUNDS = 30
CASES = (
    Case(16, 10),  # the latency floor
    Case(16, 10, what="forward"),
    Case(128, 34),
    Case(1024, 34),
    Case(1024, 34, "half"),
    Case(1024, 34, "half", what="forward"),
    Case(1024, 128, "half"),
    Case(512, 500, "half"),
    Case(256, 4096),
    Case(4096, 10, "half"),
    Case(1024, 34, "half", dtype="float64"),
    Case(1024, 34, "half", dtype="bfloat16"),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pair_kl_hinge(benchmark: Any, case: Case) -> None:
    values, labels = logits.make(case)
    step = make_step(METHODS["pairloss"], case.what, values, labels)
    products = make_step(METHODS["matrix products"], case.what, values.float(), labels)
    timer = Timer()
    calls = timer.warm_up(step).calls
    product_calls = timer.warm_up(products).calls
    product_seconds: list[float] = []

    def before_round() -> None:
        product_seconds.append(timer.sample(products, product_calls))

    def one_round() -> None:
        for _ in range(calls):
            step.run()

    benchmark.pedantic(one_round, setup=before_round, rounds=ROUNDS)
    benchmark.extra_info["calls"] = calls
    benchmark.extra_info["product_seconds"] = product_seconds
