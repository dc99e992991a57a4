"""The order of the rows, the tiles that are certain without looking at their pairs, and the lists
of all others: found by the CUDA kernels' own source on the emulation, held against brute force."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pairloss._arguments import check_inputs
from tests import truth, truth_forms
from tests.cuda_emulation.emulation import GRADIENTS, Certificates, Kernels
from tests.native_build import SANITIZE
from tests.tolerances import assert_close

IGNORED = -100
OPEN, SKIPPED, INSIDE, BEYOND = range(4)
TILE = 64


class Way(NamedTuple):
    arithmetic: str
    dtype: torch.dtype
    group_tiles: int  # row tiles of a block of the products


WAYS = [Way("fma", torch.float64, 1)]
if not SANITIZE:  # under which the emulated tensor cores are slow
    WAYS += [Way("fma", torch.float32, 1), Way("tensor", torch.float32, 2)]
each_arithmetic = pytest.mark.parametrize("way", WAYS, ids=lambda w: f"{w.arithmetic}-{w.dtype}")


def certified(kernels: Kernels, way: Way) -> Kernels:
    return Kernels(kernels.library, tiled=True, arithmetic=way.arithmetic, certified=True)


def find(kernels: Kernels, way: Way, **given: Any) -> Certificates:
    return certified(kernels, way).certificates(group_tiles=way.group_tiles, **given)


def clustered(
    rows: int,
    classes: int = 18,
    clusters: int = 4,
    height: float = 8.0,
    seed: int = 0,
    noise: float = 0.4,
) -> tuple[Tensor, Tensor]:
    """Logits of a network that has nearly converged; labels of which few are wrong."""
    generator = torch.Generator().manual_seed(seed)
    of_row = torch.randint(clusters, (rows,), generator=generator)
    logits = noise * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(rows), 2 * of_row] += height
    wrong = torch.rand(rows, generator=generator) < 0.02
    labels = torch.where(wrong, (of_row + 1) % clusters, of_row)
    return logits.float().double(), labels * 2**40 - 7


def tiles_of(order: Tensor, rows: int) -> list[NDArray[np.int64]]:
    assert sorted(order.tolist()) == list(range(rows))
    return [order[first : first + TILE].numpy() for first in range(0, rows, TILE)]


class Pairs(NamedTuple):
    """Of each pair of a row and a column, (N, M) and for the kinds (N, M, G)."""

    similar: NDArray[np.bool_]
    dissimilar: NDArray[np.bool_]
    part: NDArray[np.bool_]  # both rows take part in some level
    least: NDArray[np.float64]  # divergence of the two directions
    greatest: NDArray[np.float64]


def brute_force(given: dict[str, Tensor]) -> Pairs:
    logits, labels = given["logits"], given["labels"]
    columns, column_labels = given.get("ref_logits", logits), given.get("ref_labels", labels)
    log_p = torch.cat([logits, columns]).double().log_softmax(1).numpy()
    divergence = truth.pairwise_kl(log_p)
    n = len(logits)
    ours = labels.reshape(n, 1, -1)
    theirs = column_labels.reshape(1, len(columns), -1)
    different = torch.ones(n, len(columns), 1, dtype=torch.bool)
    if columns is logits:
        different[range(n), range(n)] = False
    valid = (ours != IGNORED) & (theirs != IGNORED) & different
    part = (ours != IGNORED).any(2) & (theirs != IGNORED).any(2) & different[:, :, 0]
    there, back = divergence[:n, n:], divergence[n:, :n].T
    return Pairs(
        ((ours == theirs) & valid).numpy(),
        ((ours != theirs) & valid).numpy(),
        part.numpy(),
        np.minimum(there, back),
        np.maximum(there, back),
    )


def check_tile(state: int, pairs: Pairs, tile: tuple[NDArray, ...], margin: float) -> None:
    similar, dissimilar, part = pairs.similar[tile], pairs.dissimilar[tile], pairs.part[tile]
    inside, beyond = pairs.greatest[tile] < margin, pairs.least[tile] >= margin
    for level in range(similar.shape[2]):
        alike, unlike = similar[:, :, level], dissimilar[:, :, level]
        if state == SKIPPED:
            assert not alike.any()
        if state in (INSIDE, BEYOND) and alike.any():
            assert (alike == part).all()
        if state in (SKIPPED, BEYOND):
            assert beyond[unlike].all()
        if state == INSIDE and unlike.any():
            assert (unlike == part).all()
            assert inside[unlike].all()


def check(
    found: Certificates, given: dict[str, Tensor], margin: float, group: int
) -> dict[int, float]:
    """All pairs of a tile are what its state says, and the lists are those of the states. Returns
    the shares of the states."""
    pairs = brute_force(given)
    within = "ref_logits" not in given
    rows = tiles_of(found.order, len(given["logits"]))
    columns = rows if within else tiles_of(found.ref_order, len(given["ref_logits"]))
    states = found.states.numpy()
    assert np.isin(states, (OPEN, SKIPPED, INSIDE, BEYOND)).all()
    for r, c in np.ndindex(states.shape):
        check_tile(int(states[r, c]), pairs, np.ix_(rows[r], columns[c]), margin)
    if within:
        assert (states == states.T).all()
    listed = states == OPEN
    assert len(found.open) == (np.triu(listed) if within else listed).sum()
    assert (found.open.diff() > 0).all()
    for number, of_group in enumerate(found.open_columns):
        any_open = listed[number * group : (number + 1) * group].any(0)
        assert of_group.tolist() == np.flatnonzero(any_open).tolist()
    return {state: float((states == state).mean()) for state in (OPEN, SKIPPED, INSIDE, BEYOND)}


# ---- the order of the rows ----------------------------------------------------------------------


def check_order(order: Tensor, logits: Tensor, labels: Tensor) -> None:
    """By labels, then by the largest class, then by confidence: in eighths of octaves."""
    runs = torch.unique_consecutive(labels[order])
    assert len(runs) == len(runs.unique())
    probabilities = logits.softmax(1)
    for label in runs:
        rows = order[labels[order] == label]
        largest, of_row = probabilities[rows].max(1)
        assert (of_row.diff() >= 0).all()
        for k in of_row.unique():
            odds = (1 - largest[of_row == k]) / largest[of_row == k]
            assert (odds[1:] * 1.13 > odds[:-1]).all()


@each_arithmetic
def test_like_rows_are_neighbours(kernels: Kernels, way: Way) -> None:
    logits, labels = clustered(330, seed=1)
    labels[[4, 80, 329]] = IGNORED
    logits[7, 3] = -torch.inf
    logits[9, 0] = torch.nan
    logits[200] = logits[10]
    labels[200] = labels[10]
    order = find(kernels, way, logits=logits.to(way.dtype), labels=labels).order
    assert sorted(order.tolist()) == list(range(330))
    assert set(order[-3:].tolist()) == {4, 80, 329}
    assert set(order[-5:-3].tolist()) == {7, 9}
    like = order[:-5].long()
    check_order(like, logits, labels)
    place = {row: at for at, row in enumerate(like.tolist())}
    assert place[200] == place[10] + 1  # alike: in the order given


@pytest.mark.parametrize("rows", [1024, 1025, 2300])
def test_order_of_several_runs(kernels: Kernels, rows: int) -> None:
    """Of a reference set, since pairs take time here."""
    logits, labels = clustered(rows, 4, 2, 3.0)
    given = {"logits": logits[:1], "labels": labels[:1]}
    order = find(kernels, WAYS[0], **given, ref_logits=logits, ref_labels=labels).ref_order
    assert sorted(order.tolist()) == list(range(rows))
    check_order(order.long(), logits, labels)


def test_rows_stand_by_their_first_label_and_then_by_all(kernels: Kernels) -> None:
    logits, fine = clustered(200, clusters=6)
    fine = fine % 6
    labels = torch.stack([fine // 2, fine], 1)
    order = find(kernels, WAYS[0], logits=logits, labels=labels).order.long()
    for level in range(2):
        runs = torch.unique_consecutive(labels[order, level])
        assert len(runs) == len(runs.unique())


# ---- tiles --------------------------------------------------------------------------------------


def given_of(name: str) -> dict[str, Tensor]:
    logits, labels = clustered(300)
    given = {"logits": logits, "labels": labels}
    if name == "ignored":
        labels[::3] = IGNORED
    if name == "half ignored":  # whole tiles of rows that take no part
        labels[:170] = IGNORED
    if "levels" in name and "unlike" not in name:
        of_row = torch.arange(320) * 77 % 320 // TILE  # a tile of each
        given["logits"] = clustered(320)[0]
        given["logits"][range(320), 2 * of_row] += 20.0
        given["labels"] = torch.stack([of_row, of_row // 2, of_row // 4], 1)
        given["labels"][of_row == 0, 1] = IGNORED
        given["labels"][:50][of_row[:50] == 3, 2] = IGNORED
    if name == "unlike levels":  # similar in the second level alone
        given["labels"] = torch.stack([labels, torch.arange(300) % 3], 1)
    if name == "reference":
        given["ref_logits"], given["ref_labels"] = clustered(215, seed=5)
    if name == "random":
        given["logits"] = 1.5 * torch.randn(300, 18, generator=torch.Generator().manual_seed(3))
    if name.startswith("nearly uniform"):
        given["logits"] = given["logits"] * 1e-3
    if name == "extreme":
        given["logits"] = logits * 1e4
    if name == "not finite":
        logits[5, 3], logits[77, 1], logits[200, 0] = torch.nan, torch.inf, -torch.inf
        logits[100:110, 7] = -1e38
    return given


# The least shares of tiles that are skipped, inside, and beyond but for similar pairs.
SHARES = {
    "clustered": (0.2, 0.0, 0.05),
    "ignored": (0.3, 0.0, 0.03),
    "half ignored": (0.6, 0.0, 0.03),
    "levels": (0.3, 0.0, 0.3),
    "nearly uniform levels": (0.0, 0.4, 0.1),
    "unlike levels": (0.0, 0.0, 0.0),
    "reference": (0.2, 0.0, 0.04),
    "random": (0.0, 0.0, 0.05),
    "nearly uniform": (0.0, 0.3, 0.05),
    "extreme": (0.2, 0.0, 0.05),
    "not finite": (0.05, 0.0, 0.03),
}


@each_arithmetic
@pytest.mark.parametrize("name", SHARES)
def test_the_pairs_of_a_tile_are_what_it_says(kernels: Kernels, way: Way, name: str) -> None:
    given = given_of(name)
    given |= {side: x.to(way.dtype) for side, x in given.items() if x.is_floating_point()}
    found = find(kernels, way, **given, margin=2.0)
    shares = check(found, given, 2.0, way.group_tiles)
    for state, least in zip((SKIPPED, INSIDE, BEYOND), SHARES[name], strict=True):
        assert shares[state] >= least
    if name in ("random", "nearly uniform", "unlike levels"):
        assert shares[SKIPPED] == 0.0


@each_arithmetic
def test_a_margin_between_the_divergences_of_a_tile(kernels: Kernels, way: Way) -> None:
    """Whatever the margin is, no tile is certain that is not; with a larger one fewer are beyond,
    and more inside."""
    given = {**given_of("clustered")}
    given["logits"] = given["logits"].to(way.dtype)
    pairs = brute_force(given)
    far = pairs.least[pairs.dissimilar[:, :, 0] & (pairs.least > 2.0)]
    skipped, inside = [], []
    for quantile in (0.0, 0.01, 0.2, 0.5, 1.0, 2.0):
        margin = float(np.quantile(far, min(quantile, 1.0))) * max(quantile, 1.0)
        found = find(kernels, way, **given, margin=margin)
        shares = check(found, given, margin, way.group_tiles)
        skipped.append(shares[SKIPPED])
        inside.append(shares[INSIDE])
    assert skipped == sorted(skipped, reverse=True)
    assert inside == sorted(inside)
    assert skipped[0] > 0.2 > skipped[-2] == 0.0
    assert inside[-1] > 0.2 > inside[0]


@each_arithmetic
@pytest.mark.parametrize("scale", [0.5, 2.0, 300.0])
def test_a_bound_that_is_the_divergence_itself(kernels: Kernels, way: Way, scale: float) -> None:
    """All rows of a tile are equal, so rounding alone separates the bound from the margin."""
    two = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)) * scale
    logits = two.repeat_interleave(TILE, 0).to(way.dtype)
    labels = torch.arange(2).repeat_interleave(TILE)
    log_p = two.to(way.dtype).double().log_softmax(1).numpy()
    directions = truth.pairwise_kl(log_p)[[0, 1], [1, 0]]
    least, greatest = directions.min(), directions.max()
    rounding = float(torch.finfo(way.dtype).eps) * (greatest + 1)

    def between(margin: float) -> int:
        found = find(kernels, way, logits=logits, labels=labels, margin=margin)
        (first, state), (mirrored, last) = found.states.tolist()
        assert first == last == BEYOND  # there are similar pairs alone
        assert state == mirrored
        return state

    for step in (0.03, 0.3, 3.0):
        assert between(least + step * rounding) == OPEN
        assert between(greatest - step * rounding) == OPEN
    assert between(least - 6400 * rounding) == SKIPPED
    assert between(greatest + 6400 * rounding) == INSIDE


# ---- loss and gradient --------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {
    "clustered": {},
    "ignored": {},
    "half ignored": {},
    "levels": {"level_weights": (0.3, 1.4, 0.6)},
    "nearly uniform": {},
    "nearly uniform levels": {"dissimilar_weight": 0.7},
    "reference": {"similar_weight": 0.4, "balance": True},
}


@pytest.mark.parametrize("chunk_rows", [0, 128])
@each_arithmetic
@pytest.mark.parametrize("name", [*FORMS][3:5] if SANITIZE else FORMS)
def test_equals_the_truth(kernels: Kernels, way: Way, name: str, chunk_rows: int) -> None:
    """With tiles that are skipped, in one chunk and in several."""
    given = given_of(name)
    rows, reference = len(given["logits"]), "ref_logits" in given
    options = dict(FORMS[name])
    for side, count in (("sample_weights", rows), ("ref_sample_weights", 215)):
        if name in ("ignored", "reference") and (reference or side == "sample_weights"):
            given[side] = torch.rand(count, generator=torch.Generator().manual_seed(2)).double()
    arrays = {side: x.numpy() for side, x in given.items()}
    exact = truth_forms.evaluate(
        **arrays, **{**options, "balance": "pairs" if options.get("balance") else None}
    )
    exact = exact.with_margin(truth.margin_in_a_gap(exact.dissimilar_divergence, 2.0))
    options["margin"] = exact.margin
    weights = options.pop("level_weights", None)
    given |= {side: x.to(way.dtype) for side, x in given.items() if x.is_floating_point()}
    inputs = check_inputs(**given, level_weights=weights)
    call = {side: x for side, x in inputs._asdict().items() if x is not None} | options
    ours = certified(kernels, way)
    tolerance = 1e-12 if way.dtype == torch.float64 else 3e-6
    upstream = torch.randn(rows, generator=torch.Generator().manual_seed(4))
    more = {"with_ref_grad": reference, "chunk_rows": chunk_rows}
    for gradient in GRADIENTS:
        result = ours.forward(**call, gradient=gradient, **more)
        assert_close(result.loss, exact.loss("mean"), tolerance)
        stats = exact.stats("mean")
        assert_close(result.stats.reshape(stats.shape), stats, tolerance)
        for grad, of_side in zip(result[2:], exact.grads(gradient, "mean"), strict=True):
            if grad is not None:
                assert_close(grad, of_side, 10 * tolerance, gradient)
        back = ours.backward(upstream, **call, gradient=gradient, **more)
        expected = exact.grads(gradient, "none", upstream.double().numpy())
        for grad, of_side in zip(back[2:], expected, strict=True):
            if grad is not None:
                assert_close(grad, of_side, 10 * tolerance, f"{gradient}, backward")
    row_loss = ours.forward(**call, reduction="none", chunk_rows=chunk_rows).loss
    assert_close(row_loss, exact.loss("none"), tolerance)


@each_arithmetic
def test_same_bits_in_any_order_of_threads_and_blocks(kernels: Kernels, way: Way) -> None:
    logits, labels = clustered(330)
    results = [
        certified(kernels, way).forward(logits.to(way.dtype), labels, seed=seed, pair_blocks=5)
        for seed in range(3)
    ]
    for result in results[1:]:
        for ours, first in zip(result[:3], results[0][:3], strict=True):
            assert torch.equal(ours, first)


def test_large_batches_are_certified_by_their_sizes(kernels: Kernels) -> None:
    """Which shows in the memory for the order, and for the lists."""

    def bytes_of(rows: int, columns: int, ref_rows: int = 0, certified: bool = False) -> int:
        one = Kernels(kernels.library, certified=certified)
        return one.workspace_bytes(rows, columns, ref_rows)

    for sizes in [(4096, 34), (16384, 2), (4096, 128), (65_536, 34, 4096)]:
        assert bytes_of(*sizes) == bytes_of(*sizes, certified=True)
    for sizes in [(4096, 31), (4095, 500), (128, 4096), (4095, 34, 2**20), (2**20, 34, 4095)]:
        assert bytes_of(*sizes) < bytes_of(*sizes, certified=True)
