"""From decoded images to the network's input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

# torchvision's constants for networks trained on ImageNet; the paper uses them for Birdsnap34.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATION = f"mean {IMAGENET_MEAN}, standard deviation {IMAGENET_STD} (ImageNet)"

# A batch of bytes (b, 3, H, W) to float32 of about zero mean and unit deviation.
normalise = v2.Compose(
    [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
)


def resized_side(size: int) -> int:
    """256 for crops of 224, and in proportion."""
    return round(size * 256 / 224)


def cut(
    size: int, *, random_crop: bool = False, horizontal_flip: bool = False
) -> Callable[[Image.Image], Tensor]:
    """An RGB image to (3, size, size) uint8: the shorter side to :func:`resized_side`, cropped."""
    steps = [
        v2.Resize(resized_side(size)),
        v2.RandomCrop(size) if random_crop else v2.CenterCrop(size),
        *([v2.RandomHorizontalFlip()] if horizontal_flip else []),
        v2.PILToTensor(),
    ]
    return v2.Compose(steps)
