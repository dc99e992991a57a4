"""Checks of the public arguments, and the codes that the operators take for them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

GRADIENTS = {"both": 0, "second": 1}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
IMPLEMENTATIONS = ("auto", "fused", "reference")
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGER_DTYPES = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
)


class PairStats(NamedTuple):
    """What one evaluation of the loss saw: 0-d float64 tensors on the device of the logits.

    Attributes:
        similar_pairs: valid unordered pairs with equal labels.
        dissimilar_pairs: valid unordered pairs with different labels.
        active_fraction: share of the ordered dissimilar pairs with KL < margin (0 without any).
        similar_loss: the part of the loss that comes from similar pairs.
        dissimilar_loss: the part that comes from dissimilar pairs. With ``reduction="mean"`` and
            ``"sum"`` the two parts add up to the loss; with ``"none"`` they are those of ``"sum"``.
    """

    similar_pairs: Tensor
    dissimilar_pairs: Tensor
    active_fraction: Tensor
    similar_loss: Tensor
    dissimilar_loss: Tensor


def check_arguments(
    logits: Tensor, labels: Tensor, margin: float, gradient: str, reduction: str, ignore_index: int
) -> Tensor:
    """Raise ValueError or TypeError for what the loss cannot take; return the labels as int64."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: expected a Tensor, got {type(logits).__name__}")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels: expected a Tensor, got {type(labels).__name__}")
    if logits.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"logits: expected float64, float32, float16 or bfloat16, got {_name(logits.dtype)}"
        )
    if labels.dtype not in INTEGER_DTYPES:
        raise TypeError(f"labels: expected an integer dtype, got {_name(labels.dtype)}")
    if logits.dim() != 2:
        raise ValueError(f"logits: expected shape (N, K), got {tuple(logits.shape)}")
    if logits.shape[1] == 0:
        raise ValueError(f"logits: expected at least one column, got {tuple(logits.shape)}")
    if labels.dim() != 1 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels: expected shape ({logits.shape[0]},) to match logits "
            f"{tuple(logits.shape)}, got {tuple(labels.shape)}"
        )
    if labels.device != logits.device:
        raise ValueError(
            f"labels: expected the device of logits, {logits.device}, got {labels.device}"
        )
    check_options(margin, gradient, reduction, ignore_index)
    return labels if labels.dtype == torch.int64 else labels.to(torch.int64)


def check_options(margin: float, gradient: str, reduction: str, ignore_index: int) -> None:
    """Raise ValueError or TypeError for a bad keyword argument."""
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise TypeError(f"margin: expected a float, got {type(margin).__name__}")
    if not 0.0 <= margin < math.inf:  # also false for NaN
        raise ValueError(f"margin: expected a finite value >= 0, got {margin}")
    check_choice("gradient", gradient, tuple(GRADIENTS))
    check_choice("reduction", reduction, tuple(REDUCTIONS))
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an int, got {type(ignore_index).__name__}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: expected an int64 value, got {ignore_index}")


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        expected = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{argument}: expected one of {expected}, got {value!r}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
