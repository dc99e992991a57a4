from __future__ import annotations

import itertools
import sys
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import memory, runner
from benchmarks.baselines import Loss, eager
from benchmarks.pair_kl_hinge import METHODS, Case, Method
from benchmarks.record import Result
from benchmarks.runner import Options
from benchmarks.timing import Timer

OPTIONS = Options(seconds=0.01, memory=False)
CASE = Case(64, 10)


def run(
    monkeypatch: pytest.MonkeyPatch, method: Method, case: Case = CASE, options: Options = OPTIONS
) -> tuple[Result, Result]:
    """The result of ``method``, and of eager after it."""
    methods = {**METHODS, method.name: method}
    monkeypatch.setattr(runner, "METHODS", methods)
    first, second = runner.run_case(case, [method, METHODS["eager"]], options)
    assert second.seconds and second.problem is None
    return first, second


def test_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = run(monkeypatch, METHODS["pairloss"])
    assert len(ours.seconds) >= 3 and len(other.seconds) >= 3
    assert 0 < ours.median < 10


def test_missing_package_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pykeops", None)
    monkeypatch.setitem(sys.modules, "pykeops.torch", None)
    result, _ = run(monkeypatch, METHODS["KeOps"])
    assert not result.seconds
    assert result.problem == "pykeops.torch is not installed"


def test_failure_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*batch: object) -> torch.Tensor:
        raise RuntimeError("no compiler\nat line 3")

    result, _ = run(monkeypatch, Method("failing", lambda: fails))
    assert result.problem == "RuntimeError: no compiler"


def test_wrong_loss_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Method("wrong", lambda: lambda *batch: eager(*batch) * 1.001)
    result, _ = run(monkeypatch, wrong)
    assert not result.seconds
    assert result.problem is not None and result.problem.startswith("its loss is ")


def test_memory_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    method = replace(METHODS["L2C PairEnum"], make=lambda: pytest.fail("it was run"))
    options = replace(OPTIONS, memory_bytes=0.5 * 2**20)
    result, _ = run(monkeypatch, method, Case(64, 34), options)
    assert result.problem == "would take about 0.00266 GiB, more than 0.000488"


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 s a call, and at 32 and 64 rows 0.01 and 0.04 s beside them, by a clock of its own."""
    now = itertools.count(step=0.001)
    seen: list[int] = []
    slept = 0.0

    def slow(logits: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
        nonlocal slept
        seen.append(len(logits))
        slept += 0.1 + 0.01 * (len(logits) / 32) ** 2
        return eager(logits, labels, margin)

    timer = Timer(clock=lambda: next(now) + slept)
    monkeypatch.setattr(Timer, "for_device", lambda device: timer)
    monkeypatch.setattr(runner, "PILOT_WORK", 0.0)
    method = Method("slow", lambda: slow, pilot=True)
    case = Case(640, 10)
    result, _ = run(monkeypatch, method, case, replace(OPTIONS, patience=2.0))
    assert set(seen) == {32, 64}
    assert result.problem is not None
    seconds = float(result.problem.removeprefix("would take about ").removesuffix(" s a call"))
    assert seconds == pytest.approx(4.1, rel=0.01)


def test_budget_ends_for_competitors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(OPTIONS, budget=60.0)
    competitor = replace(METHODS["eager"], name="late", baseline=False, pilot=True)
    monkeypatch.setattr(runner, "METHODS", {**METHODS, "late": competitor})
    methods = [competitor, METHODS["eager"]]
    in_time = runner.run_case(CASE, methods, options, start=time.monotonic())
    assert all(result.seconds for result in in_time)
    late, eager_result = runner.run_case(CASE, methods, options, start=time.monotonic() - 61.0)
    assert late.problem == "the run's budget of 60 s was used up" and not late.seconds
    assert eager_result.seconds


def test_what_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LONGEST_START", 3.0)

    def hangs() -> Loss:
        time.sleep(600)
        return eager

    result, _ = run(monkeypatch, Method("hanging", hangs))
    assert result.problem == "took more than 3 s to start"


def test_methods_for_a_device() -> None:
    graphed = METHODS["pairloss, graph"]
    assert not graphed.is_for(CASE)
    assert graphed.is_for(replace(CASE, device="cuda"))
    assert not graphed.is_for(replace(CASE, device="cuda", rows=4096))
    assert METHODS["pairloss"].is_for(replace(CASE, device="cuda"))
    rough = METHODS["pairloss bf16x3"]
    assert not rough.is_for(CASE)
    assert rough.is_for(replace(CASE, device="cuda"))


def test_a_method_may_say_how_far_off_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def off() -> Loss:
        return lambda logits, labels, margin: 1.01 * eager(logits, labels, margin)

    assert "its loss is" in (run(monkeypatch, Method("exact", off))[0].problem or "")
    assert run(monkeypatch, Method("rough", off, agreement=0.02))[0].problem is None


def test_cpu_peak_sees_what_is_allocated() -> None:
    """1024 x 1024 divergences are 4 MiB; ours holds none of them."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(1024, 10, generator=generator), torch.arange(1024) % 10
    try:
        ours = memory.cpu_peak(METHODS["pairloss"], "full", logits, labels)
        theirs = memory.cpu_peak(METHODS["eager"], "full", logits, labels)
    except memory.NotMeasuredError as error:
        pytest.skip(str(error))
    assert 3 * 4 * 2**20 < theirs < 8 * 4 * 2**20
    assert ours < 4 * 2**20


def test_cpu_peak_of_a_method_that_fails() -> None:
    batch = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(memory.NotMeasuredError):
        memory.cpu_peak(METHODS["pairloss"], "full", batch[0][0], batch[1])
