"""Checks of the public arguments, and the codes that the operators take for them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

GRADIENTS = {"both": 0, "second": 1}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
PRECISIONS = {"fp32": 0, "tf32x3": 1, "bf16x3": 2, "tf32": 3}
# margin, gradient, reduction, ignore_index, similar_weight, dissimilar_weight, balance, precision
DEFAULT_CODES = (2.0, 0, 1, -100, 1.0, 1.0, False, 0)
IMPLEMENTATIONS = ("auto", "fused", "reference")
# What the fused kernels run on; elsewhere (MPS, XPU, ...) impl="auto" means the reference.
FUSED_DEVICES = ("cpu", "cuda", "meta")
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


_P = ParamSpec("_P")
_R = TypeVar("_R")


class PairStats(NamedTuple):
    """What one evaluation of the loss saw: float64 tensors on the device of the logits.

    0-d, or (G,) for labels of G levels.

    Attributes:
        similar_pairs: valid unordered pairs with equal labels.
        dissimilar_pairs: valid unordered pairs with different labels.
        active_fraction: share of the ordered dissimilar pairs with KL < margin (0 without any).
        similar_loss: the part of the loss that comes from similar pairs, weighted as in the loss.
        dissimilar_loss: the part that comes from dissimilar pairs. With ``reduction="mean"`` and
            ``"sum"`` the parts add up to the loss; with ``"none"`` they are those of ``"sum"``.
    """

    similar_pairs: Tensor
    dissimilar_pairs: Tensor
    active_fraction: Tensor
    similar_loss: Tensor
    dissimilar_loss: Tensor

    @classmethod
    def of(cls, stats: Tensor, levels: bool) -> PairStats:
        """From (5, G); ``levels``: keep G."""
        return cls(*(stats if levels else stats.select(1, 0)).unbind())


class Inputs(NamedTuple):
    """The tensors of one evaluation, checked.

    Attributes:
        labels: (N,) or (N, G), int64; None with a similarity matrix.
        similarity: (N, N), int8 in {1, 0, -1}; None with labels.
        level_weights: (G,), float64, on the CPU.
    """

    logits: Tensor
    labels: Tensor | None = None
    similarity: Tensor | None = None
    ref_logits: Tensor | None = None
    ref_labels: Tensor | None = None
    sample_weights: Tensor | None = None
    ref_sample_weights: Tensor | None = None
    level_weights: Tensor | None = None

    @property
    def has_levels(self) -> bool:
        return self.labels is not None and self.labels.dim() == 2

    @property
    def level_labels(self) -> Tensor:
        """(N, G)."""
        assert self.labels is not None
        return self.labels if self.labels.dim() == 2 else self.labels[:, None]

    @property
    def level_ref_labels(self) -> Tensor:
        """(M, G)."""
        assert self.ref_labels is not None
        return self.ref_labels if self.ref_labels.dim() == 2 else self.ref_labels[:, None]


class PairListInputs(NamedTuple):
    """The tensors of one evaluation over a list of pairs, checked.

    Attributes:
        pairs: (E, 2), int64.
        similar: (E,), bool.
        pair_weights: (E,) in the dtype of the loss; None: all 1.
    """

    logits: Tensor
    pairs: Tensor
    similar: Tensor
    pair_weights: Tensor | None = None


class Options(NamedTuple):
    """The other arguments, checked.

    Attributes:
        codes: all of them as the operators take them, in the order of csrc/schema.cpp.
        changed_codes: the same up to the last that is not the default.
    """

    margin: float
    gradient: str
    reduction: str
    ignore_index: int
    similar_weight: float
    dissimilar_weight: float
    balance: bool
    precision: str
    codes: tuple[float, ...]
    changed_codes: tuple[float, ...]


def check_inputs(
    logits: Tensor,
    labels: Tensor | None = None,
    ref_logits: Tensor | None = None,
    ref_labels: Tensor | None = None,
    sample_weights: Tensor | None = None,
    ref_sample_weights: Tensor | None = None,
    level_weights: Sequence[float] | Tensor | None = None,
    *,
    similarity: Tensor | None = None,
) -> Inputs:
    """Raise ValueError or TypeError for what the loss cannot take; else the inputs as it does."""
    _check_logits("logits", logits)
    if similarity is not None:
        similarity = _check_similarity(similarity, logits)
    else:
        labels = _check_labels("labels", labels, "logits", logits)
    if ref_logits is None and ref_labels is not None:
        raise ValueError("ref_logits: expected a Tensor beside ref_labels, got None")
    if ref_logits is not None:
        assert labels is not None
        _check_logits("ref_logits", ref_logits)
        if ref_labels is None:
            raise ValueError("ref_labels: expected a Tensor beside ref_logits, got None")
        if ref_logits.dtype != logits.dtype:
            raise TypeError(
                f"ref_logits: expected the dtype of logits, {logits.dtype}, got {ref_logits.dtype}"
            )
        _check_same_device("ref_logits", ref_logits, "logits", logits)
        if ref_logits.shape[1] != logits.shape[1]:
            raise ValueError(
                f"ref_logits: expected shape (M, {logits.shape[1]}) to match logits "
                f"{tuple(logits.shape)}, got {tuple(ref_logits.shape)}"
            )
        ref_labels = _check_labels("ref_labels", ref_labels, "ref_logits", ref_logits)
        if ref_labels.shape[1:] != labels.shape[1:]:
            raise ValueError(
                f"ref_labels: expected as many levels as labels {tuple(labels.shape)}, "
                f"got {tuple(ref_labels.shape)}"
            )
    if sample_weights is not None:
        sample_weights = _check_sample_weights("sample_weights", sample_weights, logits)
    if ref_sample_weights is not None:
        if ref_logits is None:
            raise ValueError("ref_sample_weights: expected None without ref_logits, got a Tensor")
        ref_sample_weights = _check_sample_weights(
            "ref_sample_weights", ref_sample_weights, ref_logits
        )
    if level_weights is not None:
        level_weights = _check_level_weights(level_weights, labels)
    return Inputs(
        logits,
        labels,
        similarity,
        ref_logits,
        ref_labels,
        sample_weights,
        ref_sample_weights,
        level_weights,
    )


def check_pair_list(
    logits: Tensor, pairs: Tensor, similar: Tensor, pair_weights: Tensor | None = None
) -> PairListInputs:
    """Raise ValueError, TypeError or IndexError for what the loss cannot take; else the inputs."""
    _check_logits("logits", logits)
    _check_tensor("pairs", pairs)
    if pairs.dtype not in INTEGER_DTYPES or pairs.dtype == torch.bool:
        raise TypeError(f"pairs: expected an integer dtype, got {_name(pairs.dtype)}")
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs: expected shape (E, 2), got {tuple(pairs.shape)}")
    _check_same_device("pairs", pairs, "logits", logits)
    _check_tensor("similar", similar)
    if similar.dtype != torch.bool:
        raise TypeError(f"similar: expected bool, got {_name(similar.dtype)}")
    if similar.dim() != 1 or similar.shape[0] != pairs.shape[0]:
        raise ValueError(
            f"similar: expected shape ({pairs.shape[0]},) to match pairs {tuple(pairs.shape)}, "
            f"got {tuple(similar.shape)}"
        )
    _check_same_device("similar", similar, "logits", logits)
    if pair_weights is not None:
        pair_weights = _check_weights("pair_weights", pair_weights, similar.shape, logits)
    pairs = pairs.to(torch.int64)
    _check_indices(pairs, logits.shape[0])
    return PairListInputs(logits, pairs, similar, pair_weights)


def _once(check: Callable[_P, _R]) -> Callable[_P, _R]:
    """``check``, of which what passed is not checked again.

    A training has the same options at every step, and to check them takes as long as half of a
    small batch's kernels.
    """
    remembers = functools.lru_cache(maxsize=64, typed=True)  # typed: True is no number
    passed = cast(Callable[_P, _R], remembers(check))

    @functools.wraps(check)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():  # it would warn of the cache
            return check(*args, **kwargs)
        try:
            return passed(*args, **kwargs)
        except TypeError:  # or they cannot be hashed
            return check(*args, **kwargs)

    return checked


@_once
def check_options(
    margin: float,
    gradient: str,
    reduction: str,
    ignore_index: int,
    similar_weight: float = 1.0,
    dissimilar_weight: float = 1.0,
    balance: str | None = None,
    precision: str = "fp32",
) -> Options:
    """Raise ValueError or TypeError for a bad keyword argument; else all of them."""
    check_number("margin", margin)
    check_choice("gradient", gradient, tuple(GRADIENTS))
    check_choice("reduction", reduction, tuple(REDUCTIONS))
    check_choice("precision", precision, tuple(PRECISIONS))
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an int, got {type(ignore_index).__name__}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: expected an int64 value, got {ignore_index}")
    check_number("similar_weight", similar_weight)
    check_number("dissimilar_weight", dissimilar_weight)
    if balance is not None and balance != "pairs":
        raise ValueError(f'balance: expected None or "pairs", got {balance!r}')
    margin, similar_weight = float(margin), float(similar_weight)
    dissimilar_weight, balanced = float(dissimilar_weight), balance is not None
    codes = (
        margin,
        GRADIENTS[gradient],
        REDUCTIONS[reduction],
        ignore_index,
        similar_weight,
        dissimilar_weight,
        balanced,
        PRECISIONS[precision],
    )
    changed = len(codes)
    while changed > 0 and codes[changed - 1] == DEFAULT_CODES[changed - 1]:
        changed -= 1
    return Options(
        margin,
        gradient,
        reduction,
        ignore_index,
        similar_weight,
        dissimilar_weight,
        balanced,
        precision,
        codes,
        codes[:changed],
    )


def check_number(argument: str, value: float) -> None:
    """Raise unless ``value`` is a finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument}: expected a float, got {type(value).__name__}")
    if not 0.0 <= value < math.inf:  # also false for NaN
        raise ValueError(f"{argument}: expected a finite value >= 0, got {value}")


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        expected = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{argument}: expected one of {expected}, got {value!r}")


def device_type(tensor: Tensor) -> str:
    """``tensor.device.type``, which takes 0.6 us, in 0.1 us on the CPU."""
    return "cpu" if tensor.is_cpu else tensor.device.type


def wants_reference(impl: str, logits: Tensor) -> bool:
    """Whether ``impl`` means the plain PyTorch one for these logits."""
    check_choice("impl", impl, IMPLEMENTATIONS)
    return impl == "reference" or (impl == "auto" and device_type(logits) not in FUSED_DEVICES)


def _check_logits(argument: str, logits: Tensor) -> None:
    _check_tensor(argument, logits)
    if logits.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{argument}: expected float64, float32, float16 or bfloat16, got {_name(logits.dtype)}"
        )
    shape = logits.shape
    if len(shape) != 2:
        raise ValueError(f"{argument}: expected shape (N, K), got {tuple(shape)}")
    if shape[1] == 0:
        raise ValueError(f"{argument}: expected at least one column, got {tuple(shape)}")


def _check_labels(argument: str, labels: Tensor | None, of: str, logits: Tensor) -> Tensor:
    """As int64."""
    _check_tensor(argument, labels)
    assert labels is not None
    if labels.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{argument}: expected an integer dtype, got {_name(labels.dtype)}")
    shape, rows = labels.shape, logits.shape[0]
    if len(shape) not in (1, 2) or shape[0] != rows:
        raise ValueError(
            f"{argument}: expected shape ({rows},) or ({rows}, G) to match {of} "
            f"{tuple(logits.shape)}, got {tuple(shape)}"
        )
    if len(shape) == 2 and shape[1] == 0:
        raise ValueError(f"{argument}: expected at least one level, got {tuple(shape)}")
    _check_same_device(argument, labels, of, logits)
    return labels if labels.dtype == torch.int64 else labels.to(torch.int64)


def _check_similarity(similarity: Tensor, logits: Tensor) -> Tensor:
    """As int8 in {1, 0, -1}."""
    _check_tensor("similarity", similarity)
    rows = logits.shape[0]
    if tuple(similarity.shape) != (rows, rows):
        raise ValueError(
            f"similarity: expected shape ({rows}, {rows}) to match logits "
            f"{tuple(logits.shape)}, got {tuple(similarity.shape)}"
        )
    _check_same_device("similarity", similarity, "logits", logits)
    if similarity.dtype == torch.bool:  # True: similar, False: dissimilar
        return similarity.to(torch.int8) * 2 - 1
    if similarity.dtype == torch.int8:
        return similarity
    if similarity.dtype in FLOAT_DTYPES:
        return similarity.sign().to(torch.int8)
    raise TypeError(
        f"similarity: expected bool, int8 or a float dtype, got {_name(similarity.dtype)}"
    )


def _check_sample_weights(argument: str, weights: Tensor, logits: Tensor) -> Tensor:
    return _check_weights(argument, weights, logits.shape[:1], logits)


def _check_weights(argument: str, weights: Tensor, shape: Sequence[int], logits: Tensor) -> Tensor:
    """In the dtype of the loss."""
    _check_tensor(argument, weights)
    if weights.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{argument}: expected a float dtype, got {_name(weights.dtype)}")
    if tuple(weights.shape) != tuple(shape):
        raise ValueError(f"{argument}: expected shape ({shape[0]},), got {tuple(weights.shape)}")
    _check_same_device(argument, weights, "logits", logits)
    if weights.requires_grad:
        raise ValueError(f"{argument}: expected no gradient to be required; detach() it")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return weights.to(dtype)


def _check_indices(pairs: Tensor, rows: int) -> None:
    """Only where the values are at hand: not on a GPU, which would make the host wait for it."""
    if (
        pairs.device.type != "cpu"
        or pairs.numel() == 0
        or torch.compiler.is_compiling()
        or type(pairs) is not Tensor  # a fake one has no values
        or torch._C._are_functorch_transforms_active()
    ):
        return
    smallest, largest = torch.aminmax(pairs)
    if smallest < 0 or largest >= rows:
        bad = (pairs < 0) | (pairs >= rows)
        first = int(bad.flatten().to(torch.uint8).argmax())
        raise IndexError(
            f"pairs: expected rows of logits, 0 <= index < {rows}, got "
            f"{pairs.flatten()[first].item()} at [{first // 2}, {first % 2}]"
        )


def _check_level_weights(weights: Sequence[float] | Tensor, labels: Tensor | None) -> Tensor:
    levels = labels.shape[1] if labels is not None and labels.dim() == 2 else 1
    values = weights.tolist() if isinstance(weights, Tensor) else list(weights)
    if not isinstance(values, list) or len(values) != levels:
        got = tuple(weights.shape) if isinstance(weights, Tensor) else f"{len(values)} values"
        raise ValueError(f"level_weights: expected one for each of {levels} levels, got {got}")
    for value in values:
        check_number("level_weights", value)
    return torch.tensor(values, dtype=torch.float64, device="cpu")  # whatever the default device is


def _check_tensor(argument: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a Tensor, got {type(value).__name__}")


def _check_same_device(argument: str, tensor: Tensor, of: str, other: Tensor) -> None:
    if tensor.is_cpu and other.is_cpu:  # a fifth of the time of Tensor.device
        return
    if tensor.device != other.device:
        raise ValueError(
            f"{argument}: expected the device of {of}, {other.device}, got {tensor.device}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
