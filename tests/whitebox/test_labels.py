"""Classes, pairs and the order of rows against numpy; classes by table and by search."""

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
    # A table is made for ranges below 4 n + 1024 = 1044 for 5 rows; others are searched.
    "widest for a table": [0, 1043, 7, 0, 7],
    "narrowest for searching": [0, 1044, 7, 0, 7],
    "beyond both": [2000, -2000, 2000, 0, -2000],
    "wide with an ignored row": [10**12, -100, 10**12, 1, -100],
    "ends of int64": [INT64.max, INT64.min, 0, INT64.min, INT64.max],
    "near one end": [INT64.max, INT64.max - 1, INT64.max, INT64.max - 2],
    "near the other": [INT64.min, INT64.min + 1, INT64.min],
}


@pytest.mark.parametrize("case", LABELS)
def test_level(whitebox: ModuleType, case: str) -> None:
    labels = np.array(LABELS[case], dtype=np.int64)
    check(whitebox, labels, -100)


@pytest.mark.parametrize("ignore_index", [0, -1, INT64.min, INT64.max])
def test_ignore_index(whitebox: ModuleType, ignore_index: int) -> None:
    labels = np.array([0, -1, INT64.min, INT64.max, -100, 0, -1, -100], dtype=np.int64)
    check(whitebox, labels, ignore_index)


def check(whitebox: ModuleType, labels: np.ndarray, ignore_index: int) -> None:
    level = whitebox.make_level(labels, len(labels), False, ignore_index)
    valid = labels != ignore_index
    classes, ids, sizes = np.unique(labels[valid], return_inverse=True, return_counts=True)
    expected = np.full(len(labels), -1)
    if valid.sum() > 1:  # a row without a partner takes no part
        expected[valid] = ids
    assert level["id"] == expected.tolist()
    assert level["classes"] == len(classes)
    similar = sum(int(s) * (int(s) - 1) // 2 for s in sizes)
    assert level["pairs"] == (similar, valid.sum() * (valid.sum() - 1) // 2 - similar)


@pytest.mark.parametrize("spread", [1, 10**12])
@pytest.mark.parametrize(("n", "m"), [(20, 30), (1, 7), (7, 1), (0, 5), (5, 0)])
def test_level_of_batch_and_reference(whitebox: ModuleType, n: int, m: int, spread: int) -> None:
    rng = np.random.default_rng([n, m])
    labels = rng.integers(0, 4, n + m) * spread
    labels[rng.random(n + m) < 0.2] = -100
    level = whitebox.make_level(labels, n, True, -100)
    batch, reference = labels[:n], labels[n:]
    pairs = (batch != -100)[:, None] & (reference != -100)
    similar = pairs & (batch[:, None] == reference)
    assert level["pairs"] == (similar.sum(), pairs.sum() - similar.sum())
    if pairs.any():
        valid = labels != -100
        assert (np.array(level["id"]) >= 0).tolist() == valid.tolist()
        ids = np.array(level["id"])[valid]
        assert ids.tolist() == np.unique(labels[valid], return_inverse=True)[1].tolist()
    else:
        assert set(level["id"]) <= {-1}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 63, 64, 65, 200])
def test_level_of_matrix(whitebox: ModuleType, n: int, workers: int) -> None:
    rng = np.random.default_rng(n)
    similarity = rng.integers(-1, 2, (n, n)).astype(np.int8)
    similarity[rng.random(n) < 0.3] = 0
    similarity[:, rng.random(n) < 0.3] = 0
    np.fill_diagonal(similarity, rng.integers(-1, 2, n))
    level = whitebox.make_level_of_matrix(similarity, workers)
    np.fill_diagonal(similarity, 0)
    assert level["pairs"] == ((similarity > 0).sum() / 2, (similarity < 0).sum() / 2)
    takes_part = (similarity != 0).any(0) | (similarity != 0).any(1)
    assert level["id"] == np.where(takes_part, 0, -1).tolist()


@pytest.mark.parametrize("like", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("n", "m"), [(40, 0), (40, 25), (1, 1), (0, 3)])
def test_arrangement(whitebox: ModuleType, n: int, m: int, levels: int, like: bool) -> None:
    rng = np.random.default_rng([n, m, levels])
    # The coarsest level is not the first.
    ids = [rng.integers(-1, (5, 2, 9)[g], n + m).tolist() for g in range(levels)]
    likeness = [(int(c), int(f)) for c, f in rng.integers(0, 4, (n + m, 2))] if like else []
    made = whitebox.arrange(ids, n, likeness, 4, 32)
    coarsest_first = sorted(range(levels), key=lambda g: max(ids[g], default=-1))
    row = made["row"]
    for side, rows in enumerate((range(n), range(n, n + m))):
        begin, end = made["sides"][side]
        taking_part = [i for i in rows if any(level[i] >= 0 for level in ids)]
        key = [
            (*(ids[g][i] for g in coarsest_first), *(likeness[i] if like else ()), i)
            for i in taking_part
        ]
        assert row[begin:end] == [k[-1] for k in sorted(key)]
        if side == 1 and end > begin:
            assert begin % 32 == 0
        for g in range(levels):
            for c, members in enumerate(made["members"][2 * g + side]):
                assert members == [p for p in range(begin, end) if ids[g][row[p]] == c]
    assert set(row[made["sides"][0][1] : made["sides"][1][0]]) <= {-1}
