"""Cluster with the pair loss: ``python -m models.cluster --recipe table8-cifar10``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from models.cli import train_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    description = "Train a network to cluster with the pair loss, score it, write a report."
    return train_program("clustering", "table7-cifar10", description, arguments)


if __name__ == "__main__":
    sys.exit(main())
