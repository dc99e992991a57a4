"""LeNet with three fully-connected layers, the paper's network for CIFAR10."""

from __future__ import annotations

from torch import nn

from models.networks.network import Head, Network


def lenet(
    in_shape: tuple[int, int, int],
    num_outputs: int,
    *,
    width: float = 1.0,
    batch_norm: bool = True,
    branch: bool = False,
) -> Network:
    """Two 5x5 convolutions, each with batch normalisation, ReLU and 2x2 max-pooling; FC1-FC2-FC3.

    The convolutions are those of Hsu & Kira's CIFAR network. They are not padded, so an input has
    at least 16 x 16 pixels; 28 x 28 gives 800 features, 32 x 32 gives 1250.

    Args:
        in_shape: (channels, height, width) of one image.
        num_outputs: size of FC3: classes, or clusters.
        width: factor of the other sizes, which are 20 and 50 filters, 500 and 500 units.
        batch_norm: normalise after both convolutions, FC1 and FC2.
        branch: with variant D's branch.

    Raises:
        ValueError: the images are too small.
    """
    channels, *pixels = in_shape
    if min(pixels) < 16:
        raise ValueError(
            f"in_shape: expected at least 16 x 16 pixels, got {pixels[0]} x {pixels[1]}"
        )
    conv1, conv2, fc1, fc2 = (round(width * size) for size in (20, 50, 500, 500))

    def convolution(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=5),
            nn.BatchNorm2d(outputs) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    features = nn.Sequential(convolution(channels, conv1), convolution(conv1, conv2))
    for _ in features:
        pixels = [(size - 4) // 2 for size in pixels]
    in_features = conv2 * pixels[0] * pixels[1]
    head = Head(in_features, (fc1, fc2, num_outputs), branch=branch, batch_norm=batch_norm)
    return Network(features, head)
