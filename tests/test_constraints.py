"""Constraints closed under transitivity: by hand, and at random against brute force."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from pairloss import (
    constraints,
    pair_kl_hinge_loss,
    pair_kl_hinge_loss_from_pairs,
    pair_kl_hinge_loss_from_similarity,
)


def listed(must: list[tuple[int, int]], cannot: list[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
    pairs = torch.tensor([*must, *cannot], dtype=torch.int64).reshape(-1, 2)
    return pairs, torch.arange(len(pairs)) < len(must)


def test_default_device_does_not_matter() -> None:
    pairs, similar = listed([(1, 0), (2, 1)], [(2, 4)])
    with torch.device("meta"):
        closure = constraints.close(pairs, similar, 5)
        labels, similarity = closure.labels(), closure.similarity()
    assert labels.tolist() == closure.labels().tolist()
    assert similarity.tolist() == closure.similarity().tolist()


def test_a_case_by_hand() -> None:
    """0 = 1 = 2, 4 = 5, 2 differs from 4; 3 and 6 are free, 6 is named with itself."""
    pairs, similar = listed([(1, 0), (2, 1), (5, 4), (4, 5), (6, 6)], [(2, 4), (4, 2)])
    closure = constraints.close(pairs, similar, 7)
    assert closure.component.tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert closure.cannot_link.tolist() == [[0, 2]]
    pairs, similar = closure.pairs()
    assert dict(zip(map(tuple, pairs.tolist()), similar.tolist(), strict=True)) == {
        **dict.fromkeys([(0, 1), (0, 2), (1, 2), (4, 5)], True),
        **dict.fromkeys([(i, j) for i in (0, 1, 2) for j in (4, 5)], False),
    }
    assert pairs.tolist() == sorted(pairs.tolist())
    assert closure.labels().tolist() == [0, 0, 0, -100, 2, 2, -100]
    assert closure.labels(ignore_index=-1).tolist() == [0, 0, 0, -1, 2, 2, -1]
    expected = torch.eye(7, dtype=torch.int8)
    for (i, j), alike in zip(pairs.tolist(), similar.tolist(), strict=True):
        expected[i, j] = expected[j, i] = 1 if alike else -1
    assert torch.equal(closure.similarity(), expected)


def test_a_contradiction_names_its_chain() -> None:
    pairs, similar = listed([(0, 1), (1, 2), (3, 2), (0, 9), (9, 8)], [(5, 6), (3, 0), (7, 7)])
    first, second = constraints.find_contradictions(pairs, similar, 10)
    assert first == (6, (3, 2, 1, 0), 6)
    assert second == (7, (7,), 1)
    with pytest.raises(constraints.ContradictionError, match="3 = 2 = 1 = 0") as error:
        constraints.close(pairs, similar, 10)
    assert error.value.contradictions == [first, second]
    assert "pairs[6]: cannot-link of 3 and 0" in str(error.value)
    assert "a component of 6 rows" in str(error.value)


def test_the_shortest_chain_and_many_contradictions() -> None:
    """A ring of 12 rows, all opposite ones of which must differ."""
    ring = [(i, (i + 1) % 12) for i in range(12)]
    found = constraints.find_contradictions(*listed(ring, [(0, 11), (2, 5)]), 12)
    assert [len(contradiction.path) for contradiction in found] == [2, 4]
    across = listed(ring, [(i, i + 6) for i in range(6)])
    with pytest.raises(constraints.ContradictionError, match="and 1 more") as error:
        constraints.close(*across, 12)
    assert len(error.value.contradictions) == 6


def test_a_pair_that_is_listed_256_times_counts() -> None:
    """Also where the number of times does not fit into 8 bits."""
    closure = constraints.close(*listed([(0, 1)] * 256, []), 2)
    assert closure.component.tolist() == [0, 0]


def test_labels_that_cannot_say_it() -> None:
    closure = constraints.close(*listed([(0, 1), (2, 3)], [(4, 0)]), 5)
    with pytest.raises(ValueError, match=r"the group of row 0 and that of row 2 are alike"):
        closure.labels()


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_nothing_is_implied_by_nothing(rows: int) -> None:
    closure = constraints.close(*listed([], []), rows)
    assert closure.component.tolist() == list(range(rows))
    assert closure.cannot_link.shape == (0, 2)
    assert closure.pairs()[0].shape == (0, 2)
    assert torch.equal(closure.similarity(), torch.eye(rows, dtype=torch.int8))
    assert closure.labels().tolist() == [-100] * rows


@pytest.mark.parametrize("seed", range(20))
def test_equals_rules_applied_until_nothing_changes(seed: int) -> None:
    """a = b = c gives a = c, and a = b != c gives a != c."""
    rng = np.random.default_rng(seed)
    rows, kind = 12, rng.integers(0, 4, 12)
    pairs = rng.integers(0, rows, (10, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    similar = kind[pairs[:, 0]] == kind[pairs[:, 1]]
    known = np.eye(rows, dtype=int)
    for (i, j), alike in zip(pairs, similar, strict=True):
        known[i, j] = known[j, i] = 1 if alike else -1
    before = None
    while before is None or (before != known).any():
        before = known.copy()
        for a, b, c in np.ndindex(rows, rows, rows):
            if known[a, b] == 1 and known[b, c] != 0:
                known[a, c] = known[c, a] = known[b, c]
    closure = constraints.close(torch.from_numpy(pairs), torch.from_numpy(similar), rows)
    np.testing.assert_array_equal(closure.similarity().numpy(), known)
    implied, alike = closure.pairs()
    expected = np.triu(known, 1)
    assert len(implied) == (expected != 0).sum()
    signs = np.where(alike.numpy(), 1, -1)
    np.testing.assert_array_equal(expected[tuple(implied.numpy().T)], signs)


def test_the_three_forms_are_one_loss() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    closure = constraints.close(*listed([(0, 1), (1, 2), (3, 4)], [(0, 4)]), 6)
    expected = pair_kl_hinge_loss(logits, closure.labels(), impl="reference")
    of_pairs = pair_kl_hinge_loss_from_pairs(logits, *closure.pairs(), impl="reference")
    of_matrix = pair_kl_hinge_loss_from_similarity(logits, closure.similarity(), impl="reference")
    torch.testing.assert_close(of_pairs, expected)
    torch.testing.assert_close(of_matrix, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.tensor([[0, 5]]), torch.tensor([True]), 5), IndexError, r"got 5 at \[0, 1\]"),
        ((torch.tensor([[0, 1]]), torch.tensor([1]), 5), TypeError, "similar: expected bool"),
        ((torch.tensor([[0, 1]]), torch.tensor([True]), 5.0), TypeError, "rows: expected an int"),
        ((torch.tensor([[0, 1]]), torch.tensor([True]), -1), ValueError, "rows: expected a value"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], error: type, message: str) -> None:
    for function in (constraints.close, constraints.find_contradictions):
        with pytest.raises(error, match=message):
            function(*arguments)


def test_without_scipy() -> None:
    """The package imports, and says what is missing where it is needed."""
    program = (
        "import sys; sys.modules['scipy.sparse'] = None; import pairloss\n"
        "try: import pairloss.constraints\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, text=True, stdout=subprocess.PIPE
    )
    assert run.stdout.strip() == "pairloss.constraints needs scipy: pip install scipy"
