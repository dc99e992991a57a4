"""The formulas that the CPU and the CUDA kernels share."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

INF, NAN = math.inf, math.nan
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


@pytest.fixture(params=["float32", "float64"])
def formulas(request: pytest.FixtureRequest, whitebox: ModuleType) -> ModuleType:
    module: ModuleType = getattr(whitebox, request.param)
    return module


def test_is_finite(formulas: ModuleType) -> None:
    assert all(formulas.is_finite(x) for x in (0.0, -0.0, 1e38, -1e38, 1e-45))
    assert not any(formulas.is_finite(x) for x in (INF, -INF, NAN))


def test_active_is_strict_and_lets_nan_pass(formulas: ModuleType) -> None:
    assert formulas.is_active(1.0, 2.0)
    assert not formulas.is_active(2.0, 2.0)
    assert not formulas.is_active(INF, 2.0)
    assert not formulas.is_active(0.0, 0.0)
    assert formulas.is_active(NAN, 2.0)


def test_pair_loss(formulas: ModuleType) -> None:
    assert formulas.pair_loss(1.5, True, 2.0) == 1.5
    assert formulas.pair_loss(1.5, False, 2.0) == 0.5
    assert formulas.pair_loss(2.5, False, 2.0) == 0.0
    assert formulas.pair_loss(INF, True, 2.0) == INF
    assert formulas.pair_loss(INF, False, 2.0) == 0.0
    assert math.isnan(formulas.pair_loss(NAN, True, 2.0))
    assert math.isnan(formulas.pair_loss(NAN, False, 2.0))


def test_kl_term(formulas: ModuleType) -> None:
    assert formulas.kl_term(0.5, 3.0) == 1.5
    for ratio in (INF, -INF, NAN):
        assert formulas.kl_term(0.0, ratio) == 0.0
    assert formulas.kl_term(0.5, INF) == INF
    assert math.isnan(formulas.kl_term(NAN, 1.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_flush_probability(whitebox: ModuleType, dtype: str) -> None:
    smallest = float(np.finfo(dtype).smallest_normal)
    flush = getattr(whitebox, dtype).flush_probability
    assert flush(smallest) == smallest
    assert flush(float(np.nextafter(np.dtype(dtype).type(smallest), 0))) == 0.0
    assert flush(0.25) == 0.25
    assert math.isnan(flush(NAN))


def test_kind_scales(whitebox: ModuleType) -> None:
    """Of similar and of dissimilar pairs, from the numbers of both."""

    def scales(reduction: str, similar: float, dissimilar: float, *weights: object) -> tuple:
        return whitebox.kind_scales(REDUCTIONS[reduction], similar, dissimilar, *weights)

    plain = (1.0, 1.0, False)
    assert scales("mean", 4, 6, *plain) == pytest.approx((0.1, 0.1))
    assert scales("sum", 4, 6, *plain) == (1.0, 1.0)
    assert scales("none", 4, 6, *plain) == (1.0, 1.0)
    # More pairs than 32 bits count; and a single ordered pair, which is half a pair.
    assert scales("mean", 0, 4_999_950_000, *plain) == pytest.approx((1 / 4_999_950_000,) * 2)
    assert scales("mean", 0.5, 0, *plain) == (2.0, 2.0)
    assert scales("mean", 4, 6, 3.0, 0.5, False) == pytest.approx((0.3, 0.05))
    # Each kind weighs as much as half of all pairs.
    assert scales("mean", 4, 6, 1.0, 1.0, True) == pytest.approx((1 / 8, 1 / 12))
    assert scales("sum", 4, 6, 3.0, 1.0, True) == pytest.approx((3 * 10 / 8, 10 / 12))
    for reduction in REDUCTIONS:  # no pair at all: finite, whatever it multiplies
        for balance in (False, True):
            assert all(map(math.isfinite, scales(reduction, 0, 0, 1.0, 1.0, balance)))
