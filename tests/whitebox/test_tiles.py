"""Which pairs are active, infinite, and what the active ones add up to: tile by tile."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tests import truth
from tests.whitebox.data import ELEMENTS, encode, pack_bits, unpack_bits

INF = np.inf


# ---- Active pairs ------------------------------------------------------------------------------


@pytest.mark.parametrize("element", ["float64", "float32"])
@pytest.mark.parametrize("columns", [1, 2, 10, 34, 65, 330, 700, 1100])
@pytest.mark.parametrize(("rows", "tile"), [(20, 64), (100, 64), (257, 128), (300, 256)])
def test_active_pairs(
    whitebox: ModuleType, isa: int, rows: int, tile: int, columns: int, element: str
) -> None:
    """All but those at the kink, where float32 cannot tell."""
    rng = np.random.default_rng([rows, columns])
    logits, exact = encode(rng.standard_normal((rows, columns)), element)
    divergence = truth.evaluate(exact, np.arange(rows), 0.0).divergence
    margin = float(np.median(divergence)) if columns > 1 else 0.5
    words = whitebox.find_active(isa, logits, element, np.arange(rows), margin, tile, False)
    active = unpack_bits(words, rows)
    doubtful = np.abs(divergence - margin) < (1e-5 if element == "float32" else 1e-12)
    doubtful |= np.eye(rows, dtype=bool)
    assert doubtful.mean() < 0.2
    np.testing.assert_array_equal((active | doubtful), (divergence < margin) | doubtful)


@pytest.mark.parametrize("spread", [0.01, 3.0, 10.0])
@pytest.mark.parametrize("quantile", [0.0, 0.01, 0.99, 1.0])
def test_active_pairs_at_other_scales(
    whitebox: ModuleType, isa: int, spread: float, quantile: float
) -> None:
    """Nearly uniform to nearly one-hot rows; nearly no and nearly all pairs active."""
    rows = 130
    rng = np.random.default_rng(7)
    logits, exact = encode(rng.standard_normal((rows, 40)) * spread, "float32")
    divergence = truth.evaluate(exact, np.arange(rows), 0.0).divergence
    off_diagonal = ~np.eye(rows, dtype=bool)
    margin = float(np.quantile(divergence[off_diagonal], quantile)) * (1 + 1e-4 * (quantile == 1))
    words = whitebox.find_active(isa, logits, "float32", np.arange(rows), margin, 128, False)
    decided = off_diagonal & (np.abs(divergence - margin) > 2e-6 * (1 + margin))
    np.testing.assert_array_equal(unpack_bits(words, rows)[decided], (divergence < margin)[decided])
    assert decided.mean() > 0.9


@pytest.mark.parametrize("element", ["float64", "float32"])
def test_at_the_margin_a_pair_is_not_active(whitebox: ModuleType, isa: int, element: str) -> None:
    """Of one class only, all divergences are exactly 0."""
    logits, _ = encode(np.random.default_rng(0).standard_normal((40, 1)), element)
    words = whitebox.find_active(isa, logits, element, np.arange(40), 0.0, 64, False)
    assert not unpack_bits(words, 40).any()


def test_active_pairs_are_the_same_in_any_tile(whitebox: ModuleType, isa: int) -> None:
    rng = np.random.default_rng(1)
    logits, _ = encode(rng.standard_normal((200, 34)), "float32")
    one, other = (
        whitebox.find_active(isa, logits, "float32", np.arange(200), 1.0, tile, False)
        for tile in (64, 256)
    )
    different = unpack_bits(one, 200) != unpack_bits(other, 200)
    assert not different[~np.eye(200, dtype=bool)].any()


# ---- Certificates ------------------------------------------------------------------------------


def clusters(rows: int, columns: int, spread: float) -> np.ndarray:
    """Rows around a few centres, in their order: all or nothing is active between two of them."""
    rng = np.random.default_rng([rows, columns])
    centres = rng.standard_normal((4, columns)) * 3
    return centres[np.arange(rows) * 4 // rows] + rng.standard_normal((rows, columns)) * spread


@pytest.mark.parametrize("element", ["float64", "float32"])
@pytest.mark.parametrize("spread", [0.01, 0.2, 1.0])
@pytest.mark.parametrize(
    ("rows", "tile", "columns"), [(300, 256, 10), (256, 256, 34), (500, 512, 70), (260, 256, 1100)]
)
def test_certificates(
    whitebox: ModuleType,
    isa: int,
    rows: int,
    tile: int,
    columns: int,
    spread: float,
    element: str,
) -> None:
    """Never wrong, and there where they should be; and all bits are right with them."""
    logits, exact = encode(clusters(rows, columns, spread), element)
    divergence = truth.evaluate(exact, np.arange(rows), 0.0).divergence
    off_diagonal = ~np.eye(rows, dtype=bool)
    margin = float(np.median(divergence[off_diagonal]))
    arguments = (isa, logits, element, np.arange(rows), margin, tile)
    active, inactive = whitebox.find_certain(*arguments)
    words = -(-min(rows, tile) // 32)
    known = {}
    for name, masks in (("active", active), ("inactive", inactive)):
        by_word = (masks[:, None] >> np.arange(words) & 1).astype(bool)
        known[name] = np.repeat(by_word, 32, axis=1)[:, : min(rows, tile)]
    inside = divergence[: min(rows, tile), : min(rows, tile)]
    assert (inside[known["active"]] < margin).all()
    assert (inside[known["inactive"]] >= margin).all()
    if spread == 0.01:
        assert (known["active"] | known["inactive"]).mean() > 0.5
        assert known["active"].any()
        assert known["inactive"].any()

    found = unpack_bits(whitebox.find_active(*arguments, True), rows)
    doubtful = np.abs(divergence - margin) < (2e-5 if element == "float32" else 1e-11)
    decided = off_diagonal & ~doubtful
    np.testing.assert_array_equal(found[decided], (divergence < margin)[decided])


@pytest.mark.parametrize("element", ["float64", "float32"])
@pytest.mark.parametrize(
    ("rows", "tile", "columns"), [(300, 32, 10), (1000, 64, 34), (2600, 256, 70), (1100, 64, 300)]
)
def test_tile_states(
    whitebox: ModuleType, isa: int, rows: int, tile: int, columns: int, element: str
) -> None:
    """Never wrong, and what the bounds tell; over more tiles than have theirs side by side."""
    logits, exact = encode(clusters(rows, columns, 0.01), element)
    result = truth.evaluate(exact, np.arange(rows), 0.0)
    divergence, log_p = result.divergence, result.log_p
    margin = float(np.median(divergence[divergence > 1]))
    states = whitebox.find_tile_states(isa, logits, element, np.arange(rows), margin, tile)
    blocks = -(-rows // tile)
    assert states.shape == (blocks, blocks)
    assert blocks > 8
    starts = np.arange(blocks) * tile

    largest, smallest = (
        ufunc.reduceat(ufunc.reduceat(divergence, starts, axis=0), starts, axis=1)
        for ufunc in (np.maximum, np.minimum)
    )
    assert (largest[states == 1] < margin).all()
    assert (smallest[states == -1] >= margin).all()

    p = np.exp(log_p)
    entropy = (p * log_p).sum(1)[:, None]
    upper = entropy - p @ np.minimum.reduceat(log_p, starts).T
    lower = entropy - p @ np.maximum.reduceat(log_p, starts).T
    sure = np.maximum.reduceat(upper, starts) < 0.9 * margin
    beyond = np.minimum.reduceat(lower, starts) > 1.1 * margin
    assert (states[sure] == 1).all()
    assert (states[beyond] == -1).all()
    assert (states == 1).any()
    assert (states == -1).any()


# ---- Infinite pairs ----------------------------------------------------------------------------


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("columns", [2, 63, 64, 65, 130])
def test_supports(whitebox: ModuleType, isa: int, element: str, columns: int) -> None:
    rng = np.random.default_rng(columns)
    values = rng.standard_normal((45, columns))
    values[rng.random((45, columns)) < 2 / columns] = -INF
    values[np.arange(45), rng.integers(0, columns, 45)] = 0.0  # one class at least
    values[10] = np.where(np.arange(columns) == 0, 0.0, -1e4)  # P = 0 where nothing is masked
    labels = np.sort(rng.integers(0, 20, 45))  # so that positions are rows
    logits, exact = encode(values, element)
    infinite = np.isinf(truth.evaluate(exact, labels, 2.0).divergence)
    assert infinite.any()
    assert not infinite.all()
    bits = rng.random((45, 45)) < 0.7
    found, in_class, cleared = whitebox.supports(isa, logits, element, labels, pack_bits(bits))
    np.testing.assert_array_equal(found, infinite)
    similar = (labels[:, None] == labels) & (infinite | infinite.T)
    np.testing.assert_array_equal(in_class, similar.any(1))
    np.testing.assert_array_equal(unpack_bits(cleared, 45), bits & ~infinite)


# ---- Sums over active pairs --------------------------------------------------------------------


def densities(words: int, kind: str) -> np.ndarray:
    """The share of set bits of every word: few are listed, many go through tables or tiles."""
    return {
        "none": np.zeros(words),
        "few": np.full(words, 0.02),
        "half": np.full(words, 0.5),
        "all": np.ones(words),
        "nearly all": np.full(words, 0.99),
        "mixed": np.resize([0.9, 0.0, 0.03, 0.3, 0.99, 1.0], words),
    }[kind]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["none", "few", "half", "nearly all", "all", "mixed"])
@pytest.mark.parametrize(("rows", "words"), [(1, 1), (31, 2), (64, 2), (65, 3), (256, 8)])
@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 7])
def test_selected_sums(
    whitebox: ModuleType,
    isa: int,
    vectors: int,
    rows: int,
    words: int,
    kind: str,
    dtype: type,
) -> None:
    """Panels of 1 to 4 vectors; 7 are one panel of 4 and one of 3."""
    rng = np.random.default_rng([rows, words, vectors])
    columns = whitebox.panel_width(isa, dtype == np.float64) // 4 * vectors - 1
    check_selected_sums(whitebox, isa, rng, rows, words, columns, kind, dtype)


@pytest.mark.parametrize("kind", ["few", "half", "mixed"])
@pytest.mark.parametrize(("rows", "words"), [(31, 2), (65, 3), (256, 8)])
@pytest.mark.parametrize("columns", [1, 2, 4, 5, 6, 34, 35, 36, 37, 68, 69])
def test_selected_sums_of_few_last_columns(
    whitebox: ModuleType, isa: int, columns: int, rows: int, words: int, kind: str
) -> None:
    rng = np.random.default_rng([rows, words, columns])
    check_selected_sums(whitebox, isa, rng, rows, words, columns, kind, np.float32)


@pytest.mark.parametrize("largest", [2e-30, 1.0, 255.0, 257.0, 1e4])
def test_selected_sums_of_uneven_rows(whitebox: ModuleType, isa: int, largest: float) -> None:
    """The matrix unit's floats are 26 bits of the largest in their column, where that is below 256;
    one column beyond it, and the tile goes through tables. Most sums are without the largest."""
    rng = np.random.default_rng(int(largest))
    source = (largest * 10.0 ** rng.uniform(-8, -3, (256, 40))).astype(np.float32)
    source *= rng.choice([-1.0, 1.0], source.shape)
    source[rng.integers(256, size=40), np.arange(40)] = largest
    source[:, 11] = 0.0
    source[:, 12] = largest
    source[:, 13] = -largest
    bits = rng.random((256, 256)) < 0.3
    bits[9] = True
    zeros = np.zeros(256, np.int32)
    sums, _ = whitebox.add_selected(
        isa, source, pack_bits(bits), np.zeros((256, 40), np.float32), zeros
    )
    magnitude = bits @ np.abs(source)
    allowed = 8 * np.finfo(np.float32).eps * magnitude
    if largest < 256.0:
        allowed += bits.sum(1, keepdims=True) * largest * 2.0**-26
    assert (np.abs(sums - bits @ source.astype(np.float64)) <= allowed).all()


def check_selected_sums(
    whitebox: ModuleType,
    isa: int,
    rng: np.random.Generator,
    rows: int,
    words: int,
    columns: int,
    kind: str,
    dtype: type,
) -> None:
    source = rng.standard_normal((words * 32, columns)).astype(dtype)
    destination = rng.standard_normal((rows, columns)).astype(dtype)
    bits = rng.random((rows, words * 32)) < np.repeat(densities(words, kind), 32)
    counts = rng.integers(1, 5, rows).astype(np.int32)
    sums, new_counts = whitebox.add_selected(isa, source, pack_bits(bits), destination, counts)
    np.testing.assert_array_equal(new_counts, counts + bits.sum(1))
    expected = destination + bits.astype(np.float64) @ source
    magnitude = np.abs(destination) + bits @ np.abs(source)
    assert (np.abs(sums - expected) <= 8 * np.finfo(dtype).eps * magnitude).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_selected_sums_of_classes(whitebox: ModuleType, isa: int, dtype: type) -> None:
    """All pairs but those of a class, and few of some rows: totals, and what is missing in them."""
    rng = np.random.default_rng(5)
    ids = np.sort(rng.integers(0, 5, 250))
    other = np.sort(rng.integers(0, 5, 256))
    bits = ids[:, None] != other
    bits[[3, 100, 249]] = False  # never cleared: nothing may be added to them
    bits[7, 40:] = False
    bits &= rng.random(bits.shape) < 0.995
    source = rng.standard_normal((256, 40)).astype(dtype)
    destination = np.full((250, 40), np.nan, dtype=dtype)
    counts = np.zeros(250, dtype=np.int32)
    sums, counts = whitebox.add_selected(isa, source, pack_bits(bits), destination, counts)
    np.testing.assert_array_equal(counts, bits.sum(1))
    assert np.isnan(sums[counts == 0]).all()
    error = np.abs(sums - bits.astype(np.float64) @ source)[counts > 0]
    assert error.max() < 100 * np.finfo(dtype).eps * np.sqrt(256)


@pytest.mark.parametrize("kind", ["few", "half", "mixed"])
def test_selected_sums_begin_at_zero(whitebox: ModuleType, isa: int, kind: str) -> None:
    """What stands in a row that has counted nothing yet is not a sum."""
    rng = np.random.default_rng(3)
    source = rng.standard_normal((96, 40)).astype(np.float32)
    destination = np.full((50, 40), np.nan, dtype=np.float32)
    bits = rng.random((50, 96)) < np.repeat(densities(3, kind), 32)
    bits[:, 0] = True
    counts = np.zeros(50, dtype=np.int32)
    sums, _ = whitebox.add_selected(isa, source, pack_bits(bits), destination, counts)
    np.testing.assert_allclose(sums, bits.astype(np.float64) @ source, atol=1e-5)


@pytest.mark.parametrize("kind", ["few", "half", "all"])
def test_selected_sums_of_whole_numbers_are_exact(
    whitebox: ModuleType, isa: int, kind: str
) -> None:
    """24 bits of every addend count: nothing is rounded on the way to the sum."""
    rng = np.random.default_rng(4)
    for source in (
        rng.integers(-(2**16), 2**16, (64, 64)),  # sums fit into 24 bits
        rng.integers(2**23, 2**24, (64, 64)) * np.eye(64, dtype=int),  # one addend a sum
    ):
        bits = rng.random((64, 64)) < np.repeat(densities(2, kind), 32)
        destination = np.zeros((64, 64), dtype=np.float32)
        sums, _ = whitebox.add_selected(
            isa,
            source.astype(np.float32),
            pack_bits(bits),
            destination,
            np.ones(64, dtype=np.int32),
        )
        np.testing.assert_array_equal(sums, bits @ source)
