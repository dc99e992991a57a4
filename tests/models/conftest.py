"""A data set to train on within a test: noisy images of four prototypes in two groups."""

from __future__ import annotations

import pytest
import torch

from models.data import ImageData, Level, MemorySplit


def prototype_images(
    count: int, size: int = 16, channels: int = 1, noise: float = 0.3
) -> MemorySplit:
    """Classes 0 to 3; 0 and 1 are of coarse class 0, 2 and 3 of 1."""
    prototypes = torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(count)
    fine = torch.arange(count) % 4
    images = prototypes[fine] + noise * torch.randn(
        count, channels, size, size, generator=generator
    )
    return MemorySplit(images, torch.stack((fine, fine // 2), dim=1))


@pytest.fixture
def prototypes() -> ImageData:
    levels = (Level("kind", ("a", "b", "c", "d")), Level("group", ("ab", "cd")))
    return ImageData("prototypes", levels, prototype_images(100), prototype_images(40))
