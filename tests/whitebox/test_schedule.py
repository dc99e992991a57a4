"""The order of tiles: every tile once, every block's tiles in order, whoever computes them."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 8, 17])
def test_latin_square(whitebox: ModuleType, blocks: int) -> None:
    tiles = [whitebox.latin_square_tile(index, blocks) for index in range(blocks**2)]
    every = {(row, column) for row in range(blocks) for column in range(blocks)}
    assert {(row, column) for _, row, column in tiles} == every
    assert [step for step, _, _ in tiles] == sorted(step for step, _, _ in tiles)
    for step in range(blocks):
        of_step = [(row, column) for s, row, column in tiles if s == step]
        assert len({row for row, _ in of_step}) == len(of_step) == blocks
        assert len({column for _, column in of_step}) == blocks


@pytest.mark.parametrize("how", ["threads", "serial", "reversed"])
@pytest.mark.parametrize("workers", [1, 2, 4, 7])
@pytest.mark.parametrize("blocks", [1, 2, 5, 8])
def test_every_block_in_order(whitebox: ModuleType, blocks: int, workers: int, how: str) -> None:
    """Though the tiles take between 0 and 500 microseconds each."""
    rows, columns = whitebox.run_schedule(blocks, workers, how, 500 if how == "threads" else 0)
    assert rows == columns == [list(range(blocks))] * blocks


@pytest.mark.parametrize("how", ["threads", "serial", "reversed"])
@pytest.mark.parametrize("tasks", [0, 1, 2, 1000])
def test_every_task_once(whitebox: ModuleType, tasks: int, how: str) -> None:
    assert whitebox.run_tasks(tasks, 4, how) == [1] * tasks
