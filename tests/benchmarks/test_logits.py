from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import logits
from benchmarks.pair_kl_hinge import Case
from models.data import ImageData, Level, MemorySplit

STEPS = (1, 5, 15)


@pytest.mark.parametrize(("rows", "columns"), [(64, 2), (256, 34), (128, 500)])
def test_half_of_the_dissimilar_pairs_are_active(rows: int, columns: int) -> None:
    batch = logits.make(Case(rows, columns, "half"))
    assert logits.active_fraction(*batch) == pytest.approx(0.5, abs=0.01)


def test_batches_are_the_same_every_time() -> None:
    case = Case(32, 10, dtype="bfloat16")
    (first, labels), (again, _) = logits.make(case), logits.make(case)
    assert first.dtype == torch.bfloat16 and labels.dtype == torch.int64
    assert torch.equal(first, again)


@pytest.fixture
def images() -> ImageData:
    """Classes that are told apart by a bright column of pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=generator)
    pixels = torch.randn(300, 1, 16, 16, generator=generator)
    pixels[torch.arange(300), 0, :, 4 * labels] += 4
    split = MemorySplit(pixels, labels[:, None])
    return ImageData("columns of pixels", (Level("column", tuple("abcd")),), split, split)


def test_real_logits_are_of_a_training_and_kept(images: ImageData, tmp_path: Path) -> None:
    stages = {
        stage: logits.real(700, 12, stage, tmp_path, images, steps=STEPS) for stage in logits.STAGES
    }
    assert all(values.shape == (700, 12) for values, _ in stages.values())
    fractions = {stage: logits.active_fraction(*batch) for stage, batch in stages.items()}
    assert fractions["early"] > 0.9 > 0.5 > fractions["late"], fractions
    (kept,) = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    again, _ = logits.real(700, 12, "late", tmp_path, images, steps=STEPS)
    assert torch.equal(again, stages["late"][0])
    assert kept.stat().st_mtime_ns == written
    # More rows than images: moved images, not the same rows again.
    assert not torch.equal(again[:300], again[300:600])
