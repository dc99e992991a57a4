"""CIFAR10 through torchvision, with the paper's YUV preprocessing."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from models.data.hierarchy import hierarchy
from models.data.image_data import DataError, DataOptions, ImageData, MemorySplit
from models.files import write_text

# The paper's coarse classes (section 3): six animals, four vehicles.
VEHICLES = ("airplane", "automobile", "ship", "truck")

# ITU-R BT.601, RGB in [0, 1] to Y in [0, 1], U in [-0.436, 0.436], V in [-0.615, 0.615].
RGB_TO_YUV = (
    (0.299, 0.587, 0.114),
    (-0.14713, -0.28886, 0.436),
    (0.615, -0.51499, -0.10001),
)
STATISTICS = "uv_statistics.json"  # kept beside the data
CHUNK = 5000  # images at a time: 50000 of them in float32 are 0.6 GB


def load(data_root: Path, download: bool, options: DataOptions) -> ImageData:
    """The 50000 training and 10000 test images, 3 x 32 x 32, as normalised YUV."""
    train, test = _open(data_root, True, download), _open(data_root, False, download)
    kinds = {name: ["vehicle" if name in VEHICLES else "animal"] for name in train.classes}
    classes = hierarchy(("class", "kind"), kinds)
    mean, std = uv_statistics(train)

    def split(part: CIFAR10) -> MemorySplit:
        images = [normalise_yuv(rgb_to_yuv(rgb), mean, std) for rgb in _pixels(part).split(CHUNK)]
        return MemorySplit(torch.cat(images), classes.labels(torch.tensor(part.targets)))

    return ImageData(
        title="CIFAR10",
        levels=classes.levels,
        train=split(train),
        test=split(test),
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
    """RGB (n, 3, H, W) uint8 to YUV float32."""
    return torch.einsum("yc,nchw->nyhw", torch.tensor(RGB_TO_YUV), images.float() / 255)


def normalise_yuv(images: Tensor, uv_mean: Tensor, uv_std: Tensor) -> Tensor:
    """Y by the mean and deviation of its own image, U and V by those given, (2,) each.

    An image of one brightness has no deviation: its Y becomes 0.
    """
    y, uv = images[:, :1], images[:, 1:]
    std, mean = torch.std_mean(y, dim=(2, 3), correction=0, keepdim=True)
    y = (y - mean) / std.clamp(min=1e-6)
    uv = (uv - uv_mean.view(2, 1, 1)) / uv_std.view(2, 1, 1)
    return torch.cat((y, uv), dim=1)


def uv_statistics(train: CIFAR10) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (2,) of U and V over all training pixels.

    Kept in a file with the checksums of the data that they belong to; torchvision has just checked
    the data against these.
    """
    path = Path(train.root) / CIFAR10.base_folder / STATISTICS
    checksums = [checksum for _, checksum in CIFAR10.train_list]
    try:
        kept = json.loads(path.read_text())
        if kept["checksums"] == checksums:
            return torch.tensor(kept["mean"]), torch.tensor(kept["std"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged

    total = squares = torch.zeros(2, dtype=torch.float64)
    for rgb in _pixels(train).split(CHUNK):
        uv = rgb_to_yuv(rgb)[:, 1:].double()
        total, squares = total + uv.sum((0, 2, 3)), squares + uv.square().sum((0, 2, 3))
    count = len(train) * 32 * 32
    mean = total / count
    std = (squares / count - mean.square()).sqrt()
    content = {"checksums": checksums, "mean": mean.tolist(), "std": std.tolist()}
    with suppress(OSError):  # a folder that cannot be written to: computed again next time
        write_text(path, json.dumps(content, indent=1) + "\n")
    return mean.float(), std.float()


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


def _pixels(data: CIFAR10) -> Tensor:
    """RGB (n, 3, 32, 32) uint8."""
    return torch.from_numpy(data.data).permute(0, 3, 1, 2)
