"""The order of tiles: every tile once, every block's tiles in order, whoever computes them."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest

SIZES = [(1, 0), (2, 0), (5, 0), (8, 0), (1, 1), (1, 4), (4, 1), (3, 5), (5, 3), (4, 4)]


def expected_tiles(batch: int, reference: int) -> set[tuple[int, int]]:
    if reference == 0:
        return {(row, column) for row in range(batch) for column in range(batch)}
    crossing = {(i, batch + j) for i in range(batch) for j in range(reference)}
    return crossing | {(j, i) for i, j in crossing}


@pytest.mark.parametrize(("batch", "reference"), SIZES)
def test_every_tile_once(whitebox: ModuleType, batch: int, reference: int) -> None:
    tiles = whitebox.all_tiles(batch, reference, 1, [0])
    assert len(set(tiles)) == len(tiles)
    assert set(tiles) == expected_tiles(batch, reference)


@pytest.mark.parametrize(("batch", "reference"), SIZES)
def test_neighbouring_tiles_share_no_block(
    whitebox: ModuleType, batch: int, reference: int
) -> None:
    """So that threads seldom wait: as many in a row as the narrower side allows."""
    tiles = whitebox.all_tiles(batch, reference, 1, [0])
    side = min(batch, reference) if reference else batch
    for at in range(0, len(tiles), side):
        rows, columns = zip(*tiles[at : at + side], strict=True)
        assert len(set(rows)) == len(set(columns)) == side


@pytest.mark.parametrize(("blocks", "workers"), [(2, 2), (4, 2), (6, 2), (40, 2), (8, 4), (16, 8)])
def test_columns_seldom_move_between_workers(
    whitebox: ModuleType, blocks: int, workers: int
) -> None:
    """Of as many rows each: from each worker to the next one once, the last of which owns them."""
    tiles = whitebox.all_tiles(blocks, 0, 1, [0])
    for block in range(blocks):
        owners = [row * workers // blocks for row, column in tiles if column == block]
        moves = sum(before != after for before, after in itertools.pairwise(owners))
        assert moves == workers - 1
        assert owners[-1] == block * workers // blocks


@pytest.mark.parametrize("blocks", [1, 2, 5, 6, 8])
def test_the_diagonal_comes_last(whitebox: ModuleType, blocks: int) -> None:
    tiles = whitebox.all_tiles(blocks, 0, 1, [0])
    assert tiles[-blocks:] == [(block, block) for block in range(blocks)]


@pytest.mark.parametrize("how", ["threads", "serial", "reversed"])
@pytest.mark.parametrize("workers", [1, 2, 4, 7])
@pytest.mark.parametrize(("batch", "reference"), [(1, 0), (2, 0), (5, 0), (8, 0), (2, 3), (4, 1)])
def test_every_block_in_order(
    whitebox: ModuleType, batch: int, reference: int, workers: int, how: str
) -> None:
    """Though the tiles take between 0 and 500 microseconds each."""
    pause = 500 if how == "threads" else 0
    rows, columns = whitebox.run_schedule(batch, reference, workers, how, pause)
    tiles = whitebox.all_tiles(batch, reference, 1, [0])
    for block in range(batch + reference):
        assert rows[block] == [column for row, column in tiles if row == block]
        assert columns[block] == [row for row, column in tiles if column == block]


def test_workers_take_rows_of_their_own_first(whitebox: ModuleType) -> None:
    tiles = whitebox.all_tiles(8, 0, 2, [0, 1])
    assert {row for row, _ in tiles[0::2]} == {0, 1, 2, 3}
    assert {row for row, _ in tiles[1::2]} == {4, 5, 6, 7}


@pytest.mark.parametrize(("batch", "reference"), SIZES)
@pytest.mark.parametrize("turns", [[2], [1, 0, 2], [0, 0, 0, 1]])
def test_steps_are_the_same_for_any_workers(
    whitebox: ModuleType, batch: int, reference: int, turns: list[int]
) -> None:
    """Each with the same tiles, though in another order: no block's turns change."""
    tiles = whitebox.all_tiles(batch, reference, 3, turns)
    expected = whitebox.all_tiles(batch, reference, 1, [0])
    side = min(batch, reference) if reference else batch
    for at in range(0, len(expected), side):
        assert set(tiles[at : at + side]) == set(expected[at : at + side])
    assert len(tiles) == len(expected)


@pytest.mark.parametrize("how", ["threads", "serial", "reversed"])
@pytest.mark.parametrize("tasks", [0, 1, 2, 1000])
def test_every_task_once(whitebox: ModuleType, tasks: int, how: str) -> None:
    assert whitebox.run_tasks(tasks, 4, how) == [1] * tasks


def test_workers_take_tasks_of_their_own_first(whitebox: ModuleType) -> None:
    assert whitebox.order_of_tasks(7, 2, "serial") == [0, 1, 2, 3, 4, 5, 6]
    assert whitebox.order_of_tasks(7, 2, "reversed") == [3, 4, 5, 6, 0, 1, 2]
    assert whitebox.order_of_tasks(2, 4, "reversed") == [1, 0]


@pytest.mark.parametrize("how", ["threads", "serial", "reversed"])
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("tasks", [0, 1, 3, 40])
def test_a_stage_waits_for_all_of_the_one_before(
    whitebox: ModuleType, tasks: int, workers: int, how: str
) -> None:
    """Whoever does them; and nobody waits for ever for workers that come later."""
    assert whitebox.run_stages(tasks, workers, how) == [tasks] * tasks
