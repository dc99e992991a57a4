"""AlexNet as torchvision has it, the paper's network for Birdsnap34."""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights

from models.networks.network import Head, Network

# torchvision's names of the layers that ImageNet's weights are taken for: all but the last, fc8.
IMAGENET_LAYERS = {"classifier.1": "head.fc1", "classifier.4": "head.fc2"}


class WeightsError(Exception):
    """Weights are missing or do not fit; the message says how to get them."""


def alexnet(
    in_shape: tuple[int, int, int],
    num_outputs: int,
    *,
    width: float = 1.0,
    batch_norm: bool = False,
    branch: bool = False,
) -> Network:
    """Five convolutions (64, 192, 384, 256, 256 filters), dropout, FC of 4096, 4096, num_outputs.

    From 223 x 223 pixels on, FC1 sees 6 x 6 places, as torchvision's does. Smaller images
    give fewer (64 x 64: one), and FC1 is smaller by as much.

    Args:
        in_shape: (channels, height, width) of one image, at least 63 x 63 pixels.
        num_outputs: size of FC3: classes, or clusters.
        width: factor of all other sizes; 2 is the paper's "Double".
        batch_norm: normalise after every layer but the last; not in the paper.
        branch: with variant D's branch.

    Raises:
        ValueError: the images are too small.
    """
    channels, *pixels = in_shape
    if min(pixels) < 63:
        raise ValueError(
            f"in_shape: expected at least 63 x 63 pixels, got {pixels[0]} x {pixels[1]}"
        )
    c1, c2, c3, c4, c5, fc = (round(width * size) for size in (64, 192, 384, 256, 256, 4096))

    def convolution(
        inputs: int, outputs: int, kernel: int, padding: int, stride: int = 1
    ) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        return [layer, *([nn.BatchNorm2d(outputs)] if batch_norm else []), nn.ReLU(inplace=True)]

    # Without batch normalisation the indices are those of torchvision's `features`.
    features = nn.Sequential(
        *convolution(channels, c1, kernel=11, padding=2, stride=4),
        nn.MaxPool2d(3, stride=2),
        *convolution(c1, c2, kernel=5, padding=2),
        nn.MaxPool2d(3, stride=2),
        *convolution(c2, c3, kernel=3, padding=1),
        *convolution(c3, c4, kernel=3, padding=1),
        *convolution(c4, c5, kernel=3, padding=1),
        nn.MaxPool2d(3, stride=2),
    )
    rows, columns = (min(6, _after_convolutions(size)) for size in pixels)
    head = Head(
        c5 * rows * columns,
        (fc, fc, num_outputs),
        branch=branch,
        batch_norm=batch_norm,
        dropout=0.5,
    )
    return Network(nn.Sequential(features, nn.AdaptiveAvgPool2d((rows, columns))), head)


def load_imagenet(network: Network, source: str) -> None:
    """Take torchvision's ImageNet weights for every layer but the last and the branch.

    Args:
        network: an :func:`alexnet` of width 1 for images of 223 x 223 pixels or more.
        source: "torchvision", which fetches the file once and checks its hash; or the path of it.

    Raises:
        WeightsError: the file cannot be had, is damaged, or does not fit the network.
    """
    known = AlexNet_Weights.IMAGENET1K_V1
    try:
        if source == "torchvision":
            found = known.get_state_dict(progress=False, check_hash=True)
        else:
            found = torch.load(Path(source), map_location="cpu", weights_only=True)
    except (OSError, URLError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"ImageNet weights {source!r} cannot be read: {error}\n"
            f"Fetch {known.url} and name the file: --imagenet FILE"
        ) from error
    wanted = network.state_dict()
    for name in wanted:
        layer, _, kind = name.rpartition(".")
        if layer in ("head.fc3", "head.skip"):
            continue
        wanted[name] = _taken(found, _torchvision_name(layer), kind, wanted[name], source)
    network.load_state_dict(wanted)


def _torchvision_name(layer: str) -> str:
    for theirs, ours in IMAGENET_LAYERS.items():
        if layer == ours:
            return theirs
    return layer.replace("features.0.", "features.")


def _taken(found: dict[str, Tensor], layer: str, kind: str, ours: Tensor, source: str) -> Tensor:
    theirs = found.get(f"{layer}.{kind}") if isinstance(found, dict) else None
    if theirs is None or theirs.shape != ours.shape:
        got = "nothing" if theirs is None else tuple(theirs.shape)
        raise WeightsError(
            f"ImageNet weights {source!r} do not fit: {layer}.{kind} expected "
            f"{tuple(ours.shape)}, got {got}. They are for AlexNet of width 1 without batch "
            "normalisation, and colour images of 224 x 224 pixels."
        )
    return theirs


def _after_convolutions(pixels: int) -> int:
    """How many places in a row are left of ``pixels``."""
    places = (pixels + 4 - 11) // 4 + 1
    for _ in range(3):
        places = (places - 3) // 2 + 1
    return places
