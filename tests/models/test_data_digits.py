"""The digits inside scikit-learn."""

from pathlib import Path

import pytest
import torch

from models import data


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", Path("nowhere"))


def test_shape_and_split(digits):
    assert digits.in_shape == (1, 16, 16)
    assert (len(digits.train), len(digits.test)) == (1347, 450)
    assert digits.train.images.dtype == torch.float32
    assert digits.train.labels.dtype == torch.int64
    # Stratified: every class has its tenth of the test set.
    assert torch.bincount(digits.test.labels[:, 0]).min() >= 42
    assert abs(float(digits.train.images.mean())) < 1e-5
    assert float(digits.train.images.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_loops_and_open_lines(digits):
    assert digits.levels[1].classes == ("loop", "open line")
    loops = digits.train.labels[digits.train.labels[:, 1] == 0, 0]
    assert sorted(loops.unique().tolist()) == [0, 6, 8, 9]


def test_digits_are_always_split_alike(digits):
    again = data.load("digits", Path("nowhere"))
    torch.testing.assert_close(again.test.images, digits.test.images, rtol=0, atol=0)
