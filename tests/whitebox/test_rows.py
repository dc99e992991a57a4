"""Exponentials, logarithms, half precision; the rows that pairs are made of, and their means."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tests.whitebox.data import COMPUTED_IN, ELEMENTS, encode

INF, NAN = np.inf, np.nan


# ---- exp ---------------------------------------------------------------------------------------


def test_exponential_in_float(whitebox: ModuleType, isa: int) -> None:
    """Within an ulp and a bit, over all of what does not underflow."""
    dense = np.linspace(-87, 0, 2_000_001, dtype=np.float32)[1:]
    small = -np.logspace(-38, 1, 100_000, dtype=np.float32)
    # Beside the points where the exponent changes, and beside those where the rounding to it does.
    steps = np.arange(1, 250) * (np.log(2) / 2)
    near = [np.float32(-steps) * np.float32(1 + d * 2.0**-23) for d in range(-3, 4)]
    x = np.concatenate([dense, small, *near, np.float32([0, -0.0])])
    x = x[(x > -87) & (x <= 0)]
    expected = np.exp(x.astype(np.float64))
    error = np.abs(whitebox.exponential(isa, x) - expected) / np.spacing(expected.astype("f4"))
    assert error.max() <= 1.05, x[error.argmax()]


def test_exponential_in_double(whitebox: ModuleType, isa: int) -> None:
    x = np.linspace(-708, 0, 200_001)[1:]
    np.testing.assert_array_max_ulp(whitebox.exponential(isa, x), np.exp(x), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential_far_below(whitebox: ModuleType, isa: int, dtype: type) -> None:
    x = np.array([-88, -104, -150, -1e4, -1e30, -3e38, -INF], dtype=dtype)
    if dtype == np.float64:
        x = np.array([-709, -745, -800, -1e4, -1e300, -1.7e308, -INF])
    assert (whitebox.exponential(isa, x) == 0).all()


# ---- log ---------------------------------------------------------------------------------------


def test_logarithm(whitebox: ModuleType, isa: int) -> None:
    """Within an ulp, or two where the logarithm is next to nothing."""
    dense = np.linspace(1, 5000, 1_000_001)
    # Beside 1, the powers of 2, and where the exponent is rounded up.
    steps = 2.0 ** (np.arange(120) / 2)
    near = [steps * (1 + d * 2.0**-52) for d in range(-3, 4)]
    x = np.concatenate([dense, 1 + np.logspace(-16, 0, 100_000), *near, [1.7e308]])
    x = x[x >= 1]
    np.testing.assert_array_max_ulp(whitebox.logarithm(isa, x), np.log(x), 2)
    assert np.isnan(whitebox.logarithm(isa, np.array([NAN, 1.0]))).tolist() == [True, False]


# ---- Sums over the lanes -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_horizontal_sums(whitebox: ModuleType, isa: int, dtype: type[np.floating]) -> None:
    """Several at once are those one by one, to the bit, where every order of adding shows."""
    rng = np.random.default_rng(0)
    lanes = whitebox.lanes(isa, dtype is np.float64)
    x = (rng.normal(size=(1600, lanes)) * 10.0 ** rng.uniform(-9, 9, (1600, lanes))).astype(dtype)
    one_by_one, at_once = whitebox.horizontal_sums(isa, x)
    np.testing.assert_array_equal(at_once, one_by_one)
    np.testing.assert_allclose(
        at_once, x.astype(np.longdouble).sum(1), rtol=0, atol=1e-15 * np.abs(x).max()
    )


# ---- Half precision ----------------------------------------------------------------------------


def test_every_float16(whitebox: ModuleType, isa: int) -> None:
    bits = np.arange(65536).astype(np.uint16)
    expected = bits.view(np.float16).astype(np.float32)
    actual = whitebox.half_to_float(isa, bits)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))


def test_every_bfloat16(whitebox: ModuleType, isa: int) -> None:
    bits = np.arange(65536).astype(np.uint16)
    actual = whitebox.bfloat16_to_float(isa, bits)
    np.testing.assert_array_equal(actual.view(np.uint32), bits.astype(np.uint32) << 16)


# ---- One row -----------------------------------------------------------------------------------


def log_softmax(z: np.ndarray) -> np.ndarray:
    shifted = z - z.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("columns", [1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 500])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 15.0])
def test_rows(whitebox: ModuleType, isa: int, element: str, columns: int, spread: float) -> None:
    rng = np.random.default_rng(columns)
    labels = np.where(np.arange(9) % 4 == 3, -100, np.arange(9))
    logits, exact = encode(rng.standard_normal((9, columns)) * spread, element)
    made = whitebox.rows(isa, logits, element, labels)
    valid = labels != -100
    log_p = log_softmax(exact[valid])
    p = np.exp(log_p)

    eps = np.finfo(COMPUTED_IN[element]).eps
    # exp turns the absolute error of its argument into a relative one.
    tiny = np.finfo(COMPUTED_IN[element]).smallest_normal * 2
    assert (np.abs(made["p"] - p) <= 4 * eps * p * (1 - log_p) + tiny).all()
    # L is relative to the reference, a bounded version of the first row.
    relative = log_p - (made["reference"].astype(np.float64) - made["log_sum"])
    atol = 4 * eps * (1 + 4 * spread)
    np.testing.assert_allclose(made["l"], relative, atol=atol)
    np.testing.assert_allclose(made["h"], (p * relative).sum(1), atol=atol)
    assert not made["nan"].any()
    assert not made["masked"].any()


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("columns", [1, 10, 16, 70])
def test_row_flags(whitebox: ModuleType, isa: int, element: str, columns: int) -> None:
    """NaN, +inf, -inf everywhere: NaN. -inf in places: masked. The padding counts as neither."""
    values = np.zeros((7, columns))
    values[1, -1] = NAN
    values[2, 0] = INF
    values[3] = -INF
    values[4, -1] = -INF
    values[5, [0, -1]] = INF, -INF
    logits, _ = encode(values, element)
    made = whitebox.rows(isa, logits, element, np.arange(7))
    nan = [False, True, True, True, columns == 1, True, False]
    if columns == 1:
        nan[5] = True
    assert made["nan"].tolist() == nan
    masked = [False, False, False, True, True, True, False]
    fine = ~np.array(nan)
    np.testing.assert_array_equal(made["masked"][fine], np.array(masked)[fine])
    if columns > 1:
        assert made["p"][4, -1] == made["l"][4, -1] == 0
        np.testing.assert_allclose(made["p"][4, :-1], 1 / (columns - 1), rtol=1e-6)


@pytest.mark.parametrize("element", ["float64", "float32"])
def test_small_probabilities_are_zero(whitebox: ModuleType, isa: int, element: str) -> None:
    smallest = np.log(np.finfo(element).smallest_normal)
    z = np.array([[0.0, smallest + 1, smallest - 1, -1e5, -3e38]])
    logits, exact = encode(np.repeat(z, 3, 0), element)
    made = whitebox.rows(isa, logits, element, np.arange(3))
    p = np.exp(log_softmax(exact))
    assert (made["p"][:, 2:] == 0).all()
    assert np.isfinite(made["l"]).all()
    # Between the smallest normal number and where the exponential is cut off, either is right.
    assert ((made["p"][:, 1] == 0) | np.isclose(made["p"][:, 1], p[:, 1], rtol=1e-5)).all()


# ---- Means of classes --------------------------------------------------------------------------


@pytest.mark.parametrize("element", ["float64", "float32"])
@pytest.mark.parametrize("columns", [1, 10, 65, 130])
@pytest.mark.parametrize("weighted", [False, True])
def test_means(whitebox: ModuleType, isa: int, element: str, columns: int, weighted: bool) -> None:
    rng = np.random.default_rng(columns)
    labels = np.array([4, 4, -100, 9, 4, 7, 9, 2, 9, 9])
    logits, _ = encode(rng.standard_normal((10, columns)), element)
    dtype = COMPUTED_IN[element]
    eps = np.finfo(dtype).eps
    w, u = (rng.random(9).astype(dtype), rng.standard_normal(9).astype(dtype))
    made = whitebox.rows(isa, logits, element, labels)
    means = whitebox.means(
        isa, logits, element, labels, w if weighted else None, u if weighted else None
    )
    position = np.sort(labels[labels != -100])
    for c, label in enumerate([2, 4, 7, 9]):
        rows = np.flatnonzero(position == label)
        weights = w[rows].astype(np.float64) if weighted else np.ones(len(rows))
        np.testing.assert_allclose(means["weight"][c], weights.sum(), rtol=1e-6)
        centred = {}
        for name in ("l", "p"):
            x = made[name][rows].astype(np.float64)
            np.testing.assert_allclose(
                means[name][c], np.average(x, axis=0, weights=weights), atol=2 * eps
            )
            centred[name] = x - means[name][c]
            if weighted:
                expected = (weights * u[rows]) @ centred[name]
                np.testing.assert_allclose(means[f"weighted_{name}"][c], expected, atol=20 * eps)
        spread = (centred["p"] * centred["l"]).sum(1)
        np.testing.assert_allclose(means["rest"][c], weights @ spread, atol=50 * eps)
        if weighted:
            np.testing.assert_allclose(
                means["weighted_weight"][c], weights @ u[rows], rtol=1e-5, atol=4 * eps
            )
