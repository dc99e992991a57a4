"""LeNet with three fully-connected layers, the paper's network for CIFAR10."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two 5x5 convolutions, each with batch normalisation, ReLU and 2x2 max-pooling; FC1-FC2-FC3.

    The convolutions are those of Hsu & Kira's CIFAR network. They are not padded, so an input has
    at least 16 x 16 pixels; 28 x 28 gives 800 features, 32 x 32 gives 1250.

    Args:
        in_shape: (channels, height, width) of one image.
        num_outputs: size of FC3: classes, or clusters.
        conv_sizes: filters of the two convolutions.
        fc_sizes: sizes of FC1 and FC2.
        batch_norm: normalise after both convolutions, FC1 and FC2.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_outputs: int,
        *,
        conv_sizes: tuple[int, int] = (20, 50),
        fc_sizes: tuple[int, int] = (500, 500),
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = in_shape
        if min(height, width) < 16:
            raise ValueError(f"in_shape: expected at least 16 x 16 pixels, got {height} x {width}")

        def norm(layer: type[nn.BatchNorm1d | nn.BatchNorm2d], size: int) -> nn.Module:
            return layer(size) if batch_norm else nn.Identity()

        def convolution(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel_size=5),
                norm(nn.BatchNorm2d, outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )

        self.features = nn.Sequential(
            convolution(channels, conv_sizes[0]),
            convolution(conv_sizes[0], conv_sizes[1]),
            nn.Flatten(),
        )
        features = conv_sizes[1] * _after_convolutions(height) * _after_convolutions(width)
        self.fc1 = nn.Linear(features, fc_sizes[0])
        self.act1 = nn.Sequential(norm(nn.BatchNorm1d, fc_sizes[0]), nn.ReLU())
        self.fc2 = nn.Linear(fc_sizes[0], fc_sizes[1])
        self.act2 = nn.Sequential(norm(nn.BatchNorm1d, fc_sizes[1]), nn.ReLU())
        self.fc3 = nn.Linear(fc_sizes[1], num_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to the linear outputs of FC3, before any softmax (N, num_outputs)."""
        hidden: Tensor = self.act1(self.fc1(self.features(images)))
        hidden = self.act2(self.fc2(hidden))
        outputs: Tensor = self.fc3(hidden)
        return outputs


def _after_convolutions(pixels: int) -> int:
    for _ in range(2):
        pixels = (pixels - 4) // 2
    return pixels
