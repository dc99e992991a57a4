"""Checkpoints: one file per training run, whole or not there at all."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from models.files import atomic_write

FORMAT = 1


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message says why and what to do."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts of them) atomically."""
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load(path: Path, settings: dict[str, Any] | None, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint of a run with these ``settings``; of any run for None.

    Only tensors and plain values are unpickled (``weights_only``), so that a checkpoint from a
    stranger cannot run code.

    Raises:
        CheckpointError: the file is missing, damaged, not ours, or of a run with other settings.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint; delete it.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this program; delete it.")
    if settings is not None:
        check_settings(path, state["settings"], settings)
    return dict(state)


def check_settings(path: Path, saved: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to go on from ``path``, a run with the settings ``saved``, with others.

    Raises:
        CheckpointError: it names what differs.
    """
    changed = [
        f"{name} was {saved.get(name)!r}, now {settings.get(name)!r}"
        for name in sorted(saved.keys() | settings.keys())
        if saved.get(name) != settings.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"{path} is of a run with other settings: {'; '.join(changed)}. "
            "Go on with the old ones, or start over in another folder (--out)."
        )
