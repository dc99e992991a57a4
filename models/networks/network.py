"""A convolutional network with three fully-connected layers whose outputs are all in the open."""

from __future__ import annotations

from torch import Tensor, nn


class Head(nn.Module):
    """FC1, FC2 and FC3, in AlexNet's numbering fc6, fc7 and fc8.

    ::

        fc1 = W1 x           act1 = relu(norm(fc1 + skip))     (no skip without a branch)
        fc2 = W2 act1        act2 = relu(norm(fc2))            skip = Ws x,  act_skip = relu(skip)
        fc3 = W3 act2

    Args:
        in_features: size of x.
        sizes: of FC1, FC2 and FC3.
        branch: with the skip branch around FC1, which has FC1's size.
        batch_norm: normalise before both ReLUs.
        dropout: before FC1 (and the branch, which sees the same) and before FC2.
    """

    def __init__(
        self,
        in_features: int,
        sizes: tuple[int, int, int],
        *,
        branch: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()

        def activation(size: int) -> nn.Module:
            norm = nn.BatchNorm1d(size) if batch_norm else nn.Identity()
            return nn.Sequential(norm, nn.ReLU())  # not in place: a loss may look at its input

        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(in_features, sizes[0])
        self.act1 = activation(sizes[0])
        self.fc2 = nn.Linear(sizes[0], sizes[1])
        self.act2 = activation(sizes[1])
        self.fc3 = nn.Linear(sizes[1], sizes[2])
        # Made last, so that with and without it the other layers start from the same weights.
        self.skip = nn.Linear(in_features, sizes[0]) if branch else None

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Features (N, in_features) to the outputs of every layer by name, (N, size) each."""
        outputs = {}
        features = self.dropout(features)
        hidden = outputs["fc1"] = self.fc1(features)
        if self.skip is not None:
            outputs["skip"] = self.skip(features)
            outputs["act_skip"] = outputs["skip"].relu()
            hidden = hidden + outputs["skip"]
        outputs["act1"] = self.act1(hidden)
        outputs["fc2"] = self.fc2(self.dropout(outputs["act1"]))
        outputs["act2"] = self.act2(outputs["fc2"])
        outputs["fc3"] = self.fc3(outputs["act2"])
        return outputs


class Network(nn.Module):
    """Convolutions, flattened, and a :class:`Head`.

    The network's answer is ``outputs["fc3"]``: classes or clusters, before any softmax.
    """

    def __init__(self, features: nn.Module, head: Head) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) to the outputs of the head's layers by name."""
        outputs: dict[str, Tensor] = self.head(self.features(images).flatten(1))
        return outputs
