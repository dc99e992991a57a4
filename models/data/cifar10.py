"""CIFAR10 through torchvision, with the paper's YUV preprocessing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from models.data.hierarchy import hierarchy
from models.data.image_data import DataError, DataOptions, ImageData, MemorySplit

# The paper's coarse classes (section 3): six animals, four vehicles.
VEHICLES = ("airplane", "automobile", "ship", "truck")

# ITU-R BT.601, RGB in [0, 1] to Y in [0, 1], U in [-0.436, 0.436], V in [-0.615, 0.615].
RGB_TO_YUV = (
    (0.299, 0.587, 0.114),
    (-0.14713, -0.28886, 0.436),
    (0.615, -0.51499, -0.10001),
)


def load(data_root: Path, download: bool, options: DataOptions) -> ImageData:
    """The 50000 training and 10000 test images, 3 x 32 x 32, as normalised YUV."""
    train, test = _open(data_root, True, download), _open(data_root, False, download)
    train_yuv, test_yuv = _yuv(train), _yuv(test)
    std, mean = torch.std_mean(train_yuv[:, 1:], dim=(0, 2, 3), correction=0)
    kinds = {name: ["vehicle" if name in VEHICLES else "animal"] for name in train.classes}
    things = hierarchy(("class", "kind"), kinds)
    train_labels, test_labels = (
        things.labels(torch.tensor(part.targets)) for part in (train, test)
    )
    return ImageData(
        title="CIFAR10",
        levels=things.levels,
        train=MemorySplit(normalise_yuv(train_yuv, mean, std), train_labels),
        test=MemorySplit(normalise_yuv(test_yuv, mean, std), test_labels),
        notes={
            "source": str(data_root / CIFAR10.base_folder),
            "split": f"{len(train)} training and {len(test)} test images",
            "input": "YUV (BT.601)",
            "normalisation": "Y by each image's own mean and standard deviation; "
            f"U by {mean[0]:.4f}, {std[0]:.4f} and V by {mean[1]:.4f}, {std[1]:.4f} "
            "(mean, standard deviation over the training set)",
        },
    )


def rgb_to_yuv(images: Tensor) -> Tensor:
    """RGB (n, 3, H, W) in [0, 1] to YUV."""
    return torch.einsum("yc,nchw->nyhw", torch.tensor(RGB_TO_YUV), images)


def normalise_yuv(images: Tensor, uv_mean: Tensor, uv_std: Tensor) -> Tensor:
    """Y by the mean and deviation of its own image, U and V by those given, (2,) each.

    An image of one brightness has no deviation: its Y becomes 0.
    """
    y, uv = images[:, :1], images[:, 1:]
    std, mean = torch.std_mean(y, dim=(2, 3), correction=0, keepdim=True)
    y = (y - mean) / std.clamp(min=1e-6)
    uv = (uv - uv_mean.view(2, 1, 1)) / uv_std.view(2, 1, 1)
    return torch.cat((y, uv), dim=1)


def _open(data_root: Path, train: bool, download: bool) -> CIFAR10:
    try:
        return CIFAR10(str(data_root), train=train, download=download)
    except (OSError, RuntimeError) as error:
        if download:
            reason = f"CIFAR10 could not be downloaded into {data_root}: {error}"
        else:
            reason = (
                f"CIFAR10 was not found whole in {data_root / CIFAR10.base_folder}.\n"
                "Get it in one of these ways:\n"
                f"  add --download         by torchvision, into {data_root} (170 MB)\n"
                f"  fetch {CIFAR10.url}\n"
                f"                         and unpack it in {data_root}\n"
                "or name the folder that holds cifar-10-batches-py with --data-root."
            )
        raise DataError(reason) from error


def _yuv(data: CIFAR10) -> Tensor:
    return rgb_to_yuv(torch.from_numpy(data.data).permute(0, 3, 1, 2).float() / 255)
