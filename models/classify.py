"""Train a classifier with cross-entropy: ``python -m models.classify --recipe table6-cifar10``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from models.cli import train_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    description = "Train a classifier with cross-entropy, score it, write a report."
    return train_program("classification", "table6-cifar10", description, arguments)


if __name__ == "__main__":
    sys.exit(main())
