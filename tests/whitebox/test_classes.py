"""sort_by_class against numpy, by counting and by comparison."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

INT64 = np.iinfo(np.int64)
RNG = np.random.default_rng(0)
LABELS = {
    "none": [],
    "one": [5],
    "one ignored": [-100],
    "all ignored": [-100] * 4,
    "one class": [3] * 6,
    "all different": RNG.permutation(50),
    "few": RNG.integers(0, 4, 100),
    "negative": RNG.integers(-9, 9, 64),
    "with ignored rows": np.where(RNG.random(80) < 0.4, -100, RNG.integers(0, 5, 80)),
    # The counting sort takes ranges below 4 n + 1024 = 1044 for 5 rows, the comparison sort others.
    "widest for counting": [0, 1043, 7, 0, 7],
    "narrowest for comparing": [0, 1044, 7, 0, 7],
    "beyond both": [2000, -2000, 2000, 0, -2000],
    "wide with an ignored row": [10**12, -100, 10**12, 1, -100],
    "ends of int64": [INT64.max, INT64.min, 0, INT64.min, INT64.max],
    "near one end": [INT64.max, INT64.max - 1, INT64.max, INT64.max - 2],
    "near the other": [INT64.min, INT64.min + 1, INT64.min],
}


@pytest.mark.parametrize("case", LABELS)
def test_sort(whitebox: ModuleType, case: str) -> None:
    labels = np.array(LABELS[case], dtype=np.int64)
    check(whitebox, labels, -100)


@pytest.mark.parametrize("ignore_index", [0, -1, INT64.min, INT64.max])
def test_ignore_index(whitebox: ModuleType, ignore_index: int) -> None:
    labels = np.array([0, -1, INT64.min, INT64.max, -100, 0, -1, -100], dtype=np.int64)
    check(whitebox, labels, ignore_index)


def check(whitebox: ModuleType, labels: np.ndarray, ignore_index: int) -> None:
    classes = whitebox.sort_by_class(labels, ignore_index)
    valid = np.flatnonzero(labels != ignore_index)
    # Stable: rows of a class keep their order.
    order = valid[np.argsort(labels[valid], kind="stable")]
    ids, begin, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    assert classes.row == order.tolist()
    assert classes.ignored == np.flatnonzero(labels == ignore_index).tolist()
    assert classes.begin == [*begin, len(order)]
    assert classes.of == np.repeat(np.arange(len(ids)), sizes).tolist()
    assert classes.count == len(ids)
    assert classes.pairs == len(order) * (len(order) - 1) // 2
    assert classes.similar_pairs == sum(int(s) * (int(s) - 1) // 2 for s in sizes)
