"""Builds the emulated kernels with the host compiler and calls them with tensors on the CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.native_build import OPTIMISE, ROOT, compile_once, headers

HERE = Path(__file__).resolve().parent

GRADIENTS = {"both": 0, "second": 1}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
ELEMENTS = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


class EmulationError(RuntimeError):
    """A kernel did something that CUDA leaves undefined."""


def build(name: str) -> ctypes.CDLL:
    """tests/cuda_emulation/<name>.cpp, compiled."""
    source = HERE / f"{name}.cpp"
    # torch's headers have the half-precision types; nothing of torch is linked.
    torch_include = Path(torch.__file__).parent / "include"
    arguments = ["-std=c++17", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    arguments += ["-DPAIRLOSS_CUDA_EMULATION", f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
    arguments += ["-isystem", str(torch_include), *OPTIMISE, str(source)]
    read = [*headers("*.h", "cuda/*"), *sorted(HERE.glob("*.h")), source]
    return ctypes.CDLL(str(compile_once(f"{name}.so", arguments, read)))


class _Call(ctypes.Structure):
    """Call of pair_kl_hinge.cpp."""

    _fields_ = [
        ("element", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        ("logits", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("ignore_index", ctypes.c_int64),
        ("margin", ctypes.c_double),
        ("gradient", ctypes.c_int64),
        ("reduction", ctypes.c_int64),
        ("upstream", ctypes.c_void_p),
        ("loss", ctypes.c_void_p),
        ("stats", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("chunk_rows", ctypes.c_int64),
        ("seed", ctypes.c_int64),
    ]


class Result(NamedTuple):
    """What pair_kl_hinge returns."""

    loss: Tensor
    stats: Tensor
    grad: Tensor | None


class Kernels:
    """The two operators on the emulation: like torch.ops.pairloss, for tensors on the CPU.

    ``chunk_rows`` forces the size of the chunks of rows, ``seed`` the order of threads and blocks.
    """

    def __init__(self, library: ctypes.CDLL):
        library.emulate_pair_kl_hinge.restype = ctypes.c_char_p
        library.workspace_bytes_float32.restype = ctypes.c_int64
        library.workspace_bytes_float32.argtypes = [ctypes.c_int64] * 4
        self.library = library

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        margin: float = 2.0,
        gradient: str = "both",
        reduction: str = "mean",
        ignore_index: int = -100,
        with_grad: bool = True,
        chunk_rows: int = 0,
        seed: int = 0,
    ) -> Result:
        """pair_kl_hinge. Results start as NaN, so that what the kernels do not write is seen."""
        dtype = _accumulation_dtype(logits)
        per_row = reduction == "none"
        loss = torch.full(logits.shape[:1] if per_row else (), torch.nan, dtype=dtype)
        stats = torch.full((5,), torch.nan, dtype=torch.float64)
        grad = (
            torch.full(logits.shape, torch.nan, dtype=dtype) if with_grad and not per_row else None
        )
        self._call(
            logits,
            labels,
            margin=margin,
            gradient=GRADIENTS[gradient],
            reduction=REDUCTIONS[reduction],
            ignore_index=ignore_index,
            loss=loss.data_ptr(),
            stats=stats.data_ptr(),
            grad=grad.data_ptr() if grad is not None else None,
            chunk_rows=chunk_rows,
            seed=seed,
        )
        return Result(loss, stats, grad)

    def backward(
        self,
        upstream: Tensor,
        logits: Tensor,
        labels: Tensor,
        *,
        margin: float = 2.0,
        gradient: str = "both",
        ignore_index: int = -100,
        chunk_rows: int = 0,
        seed: int = 0,
    ) -> Tensor:
        """pair_kl_hinge_backward: the gradient of reduction "none"."""
        upstream = upstream.to(_accumulation_dtype(logits)).contiguous()
        grad = torch.full(logits.shape, torch.nan, dtype=logits.dtype)
        self._call(
            logits,
            labels,
            margin=margin,
            gradient=GRADIENTS[gradient],
            reduction=REDUCTIONS["none"],
            ignore_index=ignore_index,
            upstream=upstream.data_ptr(),
            grad=grad.data_ptr(),
            chunk_rows=chunk_rows,
            seed=seed,
        )
        return grad

    def workspace_bytes(self, rows: int, classes: int, gradient: str = "both") -> int:
        """Memory of one float32 call with a gradient, beyond its arguments and results."""
        return self.library.workspace_bytes_float32(rows, classes, GRADIENTS[gradient], 1)

    def _call(self, logits: Tensor, labels: Tensor, **options: float | int | None) -> None:
        logits, labels = logits.detach().contiguous(), labels.contiguous()
        before = logits.clone(), labels.clone()
        call = _Call(
            element=ELEMENTS[logits.dtype],
            rows=logits.shape[0],
            classes=logits.shape[1],
            logits=logits.data_ptr(),
            labels=labels.data_ptr(),
            **options,
        )
        message = self.library.emulate_pair_kl_hinge(ctypes.byref(call))
        if message is not None:
            raise EmulationError(message.decode())
        for now, then in zip((logits, labels), before, strict=True):
            if not torch.equal(now.view(torch.uint8), then.view(torch.uint8)):
                raise EmulationError("the kernels wrote into their inputs")


def _accumulation_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
