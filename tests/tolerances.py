"""How far a result may be from the float64 truth: one table, by the dtype of the logits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike


class Tolerance(NamedTuple):
    """Relative to the largest element of what is compared."""

    loss: float
    grad: float


# Half logits: the arithmetic and the loss are float32's, the gradient is rounded once to the dtype.
TOLERANCES = {
    torch.float64: Tolerance(loss=1e-12, grad=1e-12),
    torch.float32: Tolerance(loss=1e-5, grad=1e-5),
    torch.float16: Tolerance(loss=1e-5, grad=1e-5 + 2**-11),
    torch.bfloat16: Tolerance(loss=1e-5, grad=1e-5 + 2**-8),
}
DTYPES = tuple(TOLERANCES)


def relative_error(
    actual: torch.Tensor | ArrayLike, expected: ArrayLike, scale: float = 1e-30
) -> float:
    """The largest error over the largest element, or over ``scale`` if that is larger.

    inf where the two do not have the same infinities and NaNs.
    """
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().double().cpu().numpy()
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    finite = np.isfinite(expected)
    if not np.isfinite(actual[finite]).all():
        return np.inf
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return np.inf
    error = np.abs(actual[finite] - expected[finite]).max(initial=0.0)
    return float(error / max(np.abs(expected[finite]).max(initial=0.0), scale))


def assert_close(
    actual: torch.Tensor | ArrayLike,
    expected: ArrayLike,
    tolerance: float,
    what: str = "result",
    scale: float = 1e-30,
) -> None:
    error = relative_error(actual, expected, scale)
    assert error <= tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.1e}"
