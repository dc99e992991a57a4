"""Checkpoints: one file per training run, whole or not there at all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from models.files import atomic_write

FORMAT = 1
BRIEF = 80  # characters of a value in a message


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message says why and what to do."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts of them) atomically."""
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load(
    path: Path,
    settings: dict[str, Any] | None,
    device: torch.device,
    older: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint of a run with these ``settings``; of any run for None.

    ``older``: see :func:`check_settings`.

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
        check_settings(path, state["settings"], settings, older)
    return dict(state)


def check_settings(
    path: Path,
    saved: dict[str, Any],
    settings: dict[str, Any],
    older: dict[str, Any] | None = None,
) -> None:
    """Refuse to go on from ``path``, a run with the settings ``saved``, with others.

    Args:
        older: what ``saved`` is taken to say where it is from before there was a setting.

    Raises:
        CheckpointError: it names what differs.
    """
    changed = list(_changes(_completed(saved, older or {}), settings))
    if changed:
        raise CheckpointError(
            f"{path} is of a run with other settings: {'; '.join(changed)}. "
            "Go on with the old ones (images: with the old data), or start over: in another "
            "folder (--out), or without --resume."
        )


def _completed(saved: dict[str, Any], older: dict[str, Any]) -> dict[str, Any]:
    """``saved``, and what it does not say as in ``older``; so too in its groups of settings."""
    groups = {
        name: {**older[name], **value}
        for name, value in saved.items()
        if isinstance(value, dict) and isinstance(older.get(name), dict)
    }
    return {**older, **saved, **groups}


def _changes(saved: dict[str, Any], settings: dict[str, Any], within: str = "") -> Iterator[str]:
    for name in sorted(saved.keys() | settings.keys()):
        was, now = saved.get(name), settings.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _changes(was, now, f"{within}{name}.")
        elif was != now:
            yield f"{within}{name} was {_brief(was, now)}, now {_brief(now, was)}"


def _brief(value: object, other: object) -> str:
    """``value``; of a long one, where it begins to differ from ``other``."""
    text = repr(value)
    same = len(os.path.commonprefix([text, repr(other)]))
    start, end = max(0, same - BRIEF // 2), same + BRIEF // 2
    if len(text) <= BRIEF:
        return text
    return "..." * (start > 0) + text[start:end] + "..." * (end < len(text))
