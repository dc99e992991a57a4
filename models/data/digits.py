"""scikit-learn's 1797 handwritten digits of 8 x 8 pixels: inside the package, no download."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import interpolate

from models.data.hierarchy import hierarchy
from models.data.image_data import DataOptions, ImageData, MemorySplit, standardise

TEST_IMAGES = 450
# By how a digit is closed; the 4 is written open.
CLASSES = {
    "0": ["loop"],
    "1": ["open line"],
    "2": ["open line"],
    "3": ["open line"],
    "4": ["open line"],
    "5": ["open line"],
    "6": ["loop"],
    "7": ["open line"],
    "8": ["loop"],
    "9": ["loop"],
}
SIZE = 16  # LeNet's two unpadded 5x5 convolutions and poolings need 16 pixels; the images have 8


def load(data_root: Path, download: bool, options: DataOptions) -> ImageData:
    """A fixed, stratified split into 1347 and 450 images, enlarged to 16 x 16 by interpolation.

    scikit-learn ships only the test part of the UCI set, so the split is ours: the same 13 writers
    are in both halves, which makes the task easier than the original one.
    """
    pixels, targets = load_digits(return_X_y=True)
    small = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = interpolate(small, size=(SIZE, SIZE), mode="bilinear")
    digits = hierarchy(("digit", "form"), CLASSES)
    labels = digits.labels(torch.tensor(targets))

    train, test = train_test_split(
        range(len(labels)), test_size=TEST_IMAGES, stratify=targets, random_state=0
    )
    train_images, test_images, note = standardise(images[train], images[test])
    return ImageData(
        title="scikit-learn digits",
        levels=digits.levels,
        train=MemorySplit(train_images, labels[train]),
        test=MemorySplit(test_images, labels[test]),
        notes={
            "source": "sklearn.datasets.load_digits (UCI optical digits, test part)",
            "split": f"stratified, {len(train)} training and {len(test)} test images",
            "input": f"8 x 8 enlarged to {SIZE} x {SIZE}, bilinear",
            "normalisation": note,
        },
    )
