"""Networks by name, each with the variants A-D."""

from __future__ import annotations

from models.networks.alexnet import WeightsError, alexnet, load_imagenet
from models.networks.lenet import lenet
from models.networks.network import Head, Network
from models.networks.variants import VARIANTS, Tap, taps

__all__ = [
    "NETWORKS",
    "TITLES",
    "VARIANTS",
    "Head",
    "Network",
    "Tap",
    "WeightsError",
    "alexnet",
    "lenet",
    "load_imagenet",
    "taps",
]

NETWORKS = {"lenet": lenet, "alexnet": alexnet}
TITLES = {"lenet": "LeNet", "alexnet": "AlexNet"}
