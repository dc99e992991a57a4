from __future__ import annotations

import pytest

from benchmarks.timing import MAX_ROUNDS, Pace, Step, Timer, interleave, rounds_within, spread


class FakeMachine:
    """A clock that only steps move, and a diary of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.diary: list[str] = []

    def step(self, name: str, seconds: float) -> Step:
        def run(*state: object) -> None:
            self.diary.append(name)
            self.now += seconds

        return Step(run)

    def timer(self) -> Timer:
        return Timer(clock=lambda: self.now)


def test_sample_is_seconds_per_call() -> None:
    machine = FakeMachine()
    assert machine.timer().sample(machine.step("a", 0.25), calls=4) == 0.25
    assert machine.diary == ["a"] * 4


def test_preparation_is_off_the_clock() -> None:
    machine = FakeMachine()
    prepare = machine.step("prepare", 10.0).run
    run = machine.step("run", 0.5).run
    assert machine.timer().sample(Step(run, prepare), calls=3) == 0.5
    assert machine.diary == ["prepare", "run"] * 3


def test_device_is_waited_for_inside_the_clock() -> None:
    machine = FakeMachine()

    def synchronize() -> None:
        if machine.diary:
            machine.now += 2.0  # what the step left going

    timer = Timer(synchronize, clock=lambda: machine.now)
    assert timer.sample(machine.step("a", 1.0), calls=2) == 2.0


@pytest.mark.parametrize(("seconds", "calls"), [(1e-4, 100), (0.02, 1), (1e-7, 1000)])
def test_warm_up_makes_samples_long_enough(seconds: float, calls: int) -> None:
    machine = FakeMachine()
    pace = machine.timer().warm_up(machine.step("a", seconds))
    assert pace.seconds == pytest.approx(seconds)
    assert pace.calls == pytest.approx(calls, abs=1)
    assert len(machine.diary) >= 2


def test_rounds_share_the_time_and_the_slow_get_three() -> None:
    paces = {"fast": Pace(0.01, 1), "slow": Pace(5.0, 1), "tiny": Pace(1e-6, 100)}
    assert rounds_within(paces, seconds=0.9) == {"fast": 30, "slow": 3, "tiny": MAX_ROUNDS}


def test_rounds_are_interleaved() -> None:
    machine = FakeMachine()
    steps = {name: machine.step(name, 1.0) for name in "abc"}
    samples = interleave(machine.timer(), steps, {name: Pace(1.0, 1) for name in "abc"}, 0.0)
    assert machine.diary == list("abc" * 3)
    assert samples == {name: [1.0] * 3 for name in "abc"}


def test_fewer_rounds_are_spread_over_the_run() -> None:
    machine = FakeMachine()
    steps = {"fast": machine.step("f", 0.1), "slow": machine.step("s", 1.0)}
    paces = {"fast": Pace(0.1, 1), "slow": Pace(1.0, 1)}
    samples = interleave(machine.timer(), steps, paces, 1.8)
    assert len(samples["fast"]) == 9
    assert "".join(machine.diary) == "fffsfffsfffs"


def test_no_method_is_no_round() -> None:
    assert interleave(Timer(), {}, {}, 1.0) == {}


def test_spread_is_between_the_quartiles() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert spread([1.0]) == 0.0
