"""The grid of batches that values and gradients are tested on, and the data of each.

Five more axes beside rows and columns. Not their product: with seven levels an axis, the 49 cases
(a, b, a + b, a + 2b, a + 3b, a + 4b, a + 5b) mod 7 form an orthogonal array, in which every level
of every axis meets every level of every other axis exactly once.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tests import truth

IGNORE_INDEX = -100
# Odd on purpose. The CPU's tiles have 64 rows up to N = 128, and 128 up to 512; words have 32 bits.
ROWS = (17, 31, 64, 65, 128, 129, 257)
FEW_ROWS = (0, 1, 2, 3)
# One class and two; less than a vector, two and a bit, a full panel (64) less or more; many panels.
COLUMNS = (1, 2, 10, 34, 127, 500, 4096)
LABELS = ("few", "one", "different", "lopsided", "pairs", "two", "few")
LARGE = 1e4  # beyond every divergence: all dissimilar pairs are active
MARGINS = (2.0, 0.5, 0.0, LARGE, 2.0, 0.5, 2.0)
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.float32,
    torch.bfloat16,
    torch.float64,
    torch.float32,
)
LAYOUTS = (
    "contiguous",
    "transposed",
    "strided",
    "overlapping",
    "unaligned",
    "contiguous",
    "transposed",
)
IGNORED = ("none", "some", "none", "ends", "most", "none", "some")


class Case(NamedTuple):
    rows: int
    columns: int
    labels: str = "few"
    margin: float = 2.0
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    ignored: str = "none"

    def __str__(self) -> str:
        return "-".join(str(value).removeprefix("torch.") for value in self)


def _case(a: int, b: int, rows: int) -> Case:
    levels = [(a + step * b) % 7 for step in range(1, 6)]
    axes = (LABELS, MARGINS, DTYPES, LAYOUTS, IGNORED)
    return Case(rows, COLUMNS[b], *(axis[i] for axis, i in zip(axes, levels, strict=True)))


GRID = tuple(_case(a, b, rows) for a, rows in enumerate(ROWS) for b in range(7))
# Rows too few for tiles: the same, shifted so that other levels meet.
GRID += tuple(_case(a + 3, b, rows) for a, rows in enumerate(FEW_ROWS) for b in range(7))


class Batch(NamedTuple):
    logits: torch.Tensor  # on the CPU, in the case's dtype and layout
    labels: torch.Tensor  # int64
    margin: float
    truth: truth.Truth

    def to(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits that require a gradient, in the same layout, and labels."""
        return move(self.logits, device).requires_grad_(), self.labels.to(device)


def move(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same numbers in the same layout on another device, detached."""
    x = x.detach()
    if device.type != "cpu":
        # The layout lives in the storage: carry all of it.
        storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(device)
        x = storage.as_strided(x.shape, x.stride(), x.storage_offset())
    return x


@cache
def make(case: Case) -> Batch:
    """Random logits, half of their pairs below the case's margin (or one beside it), none close."""
    for seed in range(50):
        batch = _make(case, seed)
        distance = np.abs(batch.truth.divergence - batch.margin)[batch.truth.dissimilar]
        # Where all divergences are 0, so is their rounding error.
        if case.columns == 1 or distance.min(initial=np.inf) > 1e-5:
            break
    else:
        raise AssertionError(f"{case}: pairs at the kink")
    dissimilar, active = batch.truth.dissimilar.sum(), batch.truth.active.sum()
    if dissimilar >= 20 and case.columns > 1 and 0.0 < case.margin < LARGE:
        assert 0.1 < active / dissimilar < 0.9, f"{case}: {active} of {dissimilar} pairs are active"
    return batch


def _make(case: Case, seed: int) -> Batch:
    rng = np.random.default_rng([case.rows, case.columns, seed])
    labels = make_labels(case.labels, case.rows, rng)
    labels[_ignored_rows(case.ignored, case.rows, rng)] = IGNORE_INDEX
    inside = 0.0 < case.margin < LARGE
    values = rng.standard_normal((case.rows, case.columns))
    values *= _spread(case.columns, case.margin if inside else 2.0)
    logits = lay_out(torch.from_numpy(values).to(case.dtype), case.layout)
    exact = logits.double().numpy()
    result = truth.evaluate(exact, labels, case.margin, IGNORE_INDEX)
    divergence = result.divergence[result.dissimilar]
    if inside and case.columns > 1 and divergence.size:
        margin = truth.margin_in_a_gap(divergence, float(np.median(divergence)))
        result = result.with_margin(margin)
    return Batch(logits, torch.from_numpy(labels), result.margin, result)


def _spread(columns: int, margin: float) -> float:
    """The standard deviation of logits for which half of the divergences are below the margin."""
    if columns == 1:
        return 1.0
    z = np.random.default_rng(0).standard_normal((33, columns))
    low, high = 0.0, 32.0
    for _ in range(12):
        middle = (low + high) / 2
        divergence = truth.evaluate(z * middle, np.arange(33), margin).divergence
        below = np.median(divergence[~np.eye(33, dtype=bool)]) < margin
        low, high = (middle, high) if below else (low, middle)
    return low


def make_labels(kind: str, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    labels = {
        "one": np.full(rows, 7),
        "two": rng.integers(0, 2, rows) * 2 - 1,
        "few": rng.integers(0, 5, rows),
        "lopsided": np.where(rng.random(rows) < 0.9, 3, rng.integers(10, 20, rows)),
        # Far apart: no table of counts holds them.
        "pairs": rng.permutation(np.arange(rows) // 2) * 2**40 - 2**45,
        "different": rng.permutation(rows),
    }[kind]
    return labels.astype(np.int64)


def _ignored_rows(kind: str, rows: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    row = np.arange(rows)
    return {
        "none": row < 0,
        "some": rng.random(rows) < 0.3,
        "ends": (row == 0) | (row == rows - 1),
        "most": row % 3 != 1,
    }[kind]


def lay_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers elsewhere in memory; other ones for "overlapping"."""
    rows, columns = values.shape
    if layout == "contiguous":
        return values.contiguous()
    if layout == "transposed":
        return values.t().contiguous().t()
    if layout == "overlapping":  # row i begins at element i of one vector
        vector = torch.cat([values[:, 0], values[:1].flatten()])
        return vector.as_strided(values.shape, (1, 1))
    if layout == "unaligned":
        storage = values.new_empty(values.numel() + 1)
        view = storage[1:].view_as(values)
    else:
        assert layout == "strided"
        # Every second row of a wider matrix, which holds NaN elsewhere.
        storage = values.new_full((2 * rows + 1, columns + 5), float("nan"))
        view = storage[1::2, 3 : 3 + columns]
    return view.copy_(values)
