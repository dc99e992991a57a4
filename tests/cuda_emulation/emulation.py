"""Builds the emulated kernels with the host compiler and calls them with tensors on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.native_build import OPTIMISE, ROOT, compile_once, headers

HERE = Path(__file__).resolve().parent

GRADIENTS = {"both": 0, "second": 1}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
PRECISIONS = {"fp32": 0, "tf32x3": 1, "bf16x3": 2, "tf32": 3}
ARITHMETICS = {"tensor": 0, "fma": 1}
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
    """Call of pair_kl_hinge.cpp. What is not set is 0, or a null pointer."""

    _fields_ = [
        ("element", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        ("levels", ctypes.c_int64),
        ("ref_rows", ctypes.c_int64),
        ("logits", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("similarity", ctypes.c_void_p),
        ("ref_logits", ctypes.c_void_p),
        ("ref_labels", ctypes.c_void_p),
        ("sample_weights", ctypes.c_void_p),
        ("ref_sample_weights", ctypes.c_void_p),
        ("level_weights", ctypes.c_void_p),
        ("ignore_index", ctypes.c_int64),
        ("margin", ctypes.c_double),
        ("similar_weight", ctypes.c_double),
        ("dissimilar_weight", ctypes.c_double),
        ("balance", ctypes.c_int64),
        ("gradient", ctypes.c_int64),
        ("reduction", ctypes.c_int64),
        ("precision", ctypes.c_int64),
        ("upstream", ctypes.c_void_p),
        ("loss", ctypes.c_void_p),
        ("stats", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("ref_grad", ctypes.c_void_p),
        ("tiled", ctypes.c_int64),
        ("chunk_rows", ctypes.c_int64),
        ("arithmetic", ctypes.c_int64),
        ("product_splits", ctypes.c_int64),
        ("pair_blocks", ctypes.c_int64),
        ("certified", ctypes.c_int64),
        ("seed", ctypes.c_int64),
        ("launches", ctypes.c_void_p),
        ("active", ctypes.c_void_p),
        ("found", ctypes.c_void_p),
    ]


class _Found(ctypes.Structure):
    """Found of pair_kl_hinge.cpp."""

    _fields_ = [
        (name, ctypes.c_void_p) for name in ("order", "ref_order", "states", "open", "open_columns")
    ]


class Certificates(NamedTuple):
    """What a certified call has found: of the pass of the batch, in one chunk of rows."""

    order: Tensor  # (N,), the row at each position
    ref_order: Tensor  # (M,)
    states: Tensor  # (row tiles, column tiles), see TileState
    open: Tensor  # indices of the open tiles
    open_columns: list[Tensor]  # of each group of row tiles, its open column tiles


class Result(NamedTuple):
    """What pair_kl_hinge returns; stats are (5,) for labels (N,)."""

    loss: Tensor
    stats: Tensor
    grad: Tensor | None
    ref_grad: Tensor | None = None


class Kernels:
    """The two operators on the emulation: like torch.ops.pairloss, for tensors on the CPU.

    ``inputs_and_options``: the tensors of :class:`pairloss._arguments.Inputs` by their names, and
    the other arguments of the operators; ``chunk_rows`` forces the size of the chunks of rows,
    ``product_splits`` into how many parts the columns are cut for the gradient's sums,
    ``pair_blocks`` how many blocks share the tiles, ``seed`` the order of threads and blocks.
    ``tiled``: the kernels for large batches at all sizes.
    ``arithmetic``: theirs, in float32.
    ``certified``: they look for certain tiles at all sizes.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        tiled: bool = False,
        arithmetic: str = "tensor",
        certified: bool = False,
    ):
        library.emulate_pair_kl_hinge.restype = ctypes.c_char_p
        library.workspace_bytes_float32.restype = ctypes.c_int64
        self.library = library
        self.tiled = tiled
        self.arithmetic = arithmetic
        self.certified = certified
        self.launches = 0  # of the last call

    def forward(
        self,
        logits: Tensor,
        labels: Tensor | None = None,
        *,
        gradient: str = "both",
        reduction: str = "mean",
        with_grad: bool = True,
        with_ref_grad: bool = False,
        **inputs_and_options: Any,
    ) -> Result:
        """pair_kl_hinge. Results start as NaN, so that what the kernels do not write is seen."""
        dtype = accumulation_dtype(logits)
        per_row = reduction == "none"
        levels = labels.shape[1:] if labels is not None else ()
        ref_logits = inputs_and_options.get("ref_logits")
        result = Result(
            _unwritten(logits.shape[:1] if per_row else (), dtype),
            _unwritten((5, *levels), torch.float64),
            _unwritten(logits.shape, dtype) if with_grad and not per_row else None,
            _unwritten(ref_logits.shape, dtype) if with_ref_grad and not per_row else None,
        )
        self._call(
            {"logits": logits, "labels": labels},
            result._asdict(),
            gradient=GRADIENTS[gradient],
            reduction=REDUCTIONS[reduction],
            **inputs_and_options,
        )
        return result

    def backward(
        self,
        upstream: Tensor,
        logits: Tensor,
        labels: Tensor | None = None,
        *,
        gradient: str = "both",
        with_grad: bool = True,
        with_ref_grad: bool = False,
        **inputs_and_options: Any,
    ) -> Result:
        """pair_kl_hinge_backward: the gradients of reduction "none". No loss, no stats."""
        ref_logits = inputs_and_options.get("ref_logits")
        grad = _unwritten(logits.shape, logits.dtype) if with_grad else None
        ref_grad = _unwritten(ref_logits.shape, logits.dtype) if with_ref_grad else None
        upstream = upstream.to(accumulation_dtype(logits))
        self._call(
            {"logits": logits, "labels": labels, "upstream": upstream},
            {"grad": grad, "ref_grad": ref_grad},
            gradient=GRADIENTS[gradient],
            reduction=REDUCTIONS["none"],
            **inputs_and_options,
        )
        return Result(torch.empty(0), torch.empty(0), grad, ref_grad)

    def active(self, logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """(N, N) bool: the ordered pairs that have a gradient, by the tiled kernels."""
        result = torch.zeros(len(logits), len(logits), dtype=torch.uint8)
        self._call(
            {"logits": logits, "labels": labels},
            {
                "loss": _unwritten((), torch.float32),
                "stats": _unwritten((5,), torch.float64),
                "grad": _unwritten(logits.shape, torch.float32),
                "active": result,
            },
            gradient=GRADIENTS["both"],
            reduction=REDUCTIONS["mean"],
            **options,
        )
        return result.bool()

    def certificates(
        self, logits: Tensor, labels: Tensor, *, group_tiles: int, **inputs_and_options: Any
    ) -> Certificates:
        """Of the forward op with a gradient."""
        ref_logits = inputs_and_options.get("ref_logits")
        columns = len(logits) if ref_logits is None else len(ref_logits)
        tiles, column_tiles = -(-len(logits) // 64), -(-columns // 64)
        integers = {"dtype": torch.int32}
        order, ref_order = torch.empty(len(logits), **integers), torch.empty(columns, **integers)
        states = torch.full((tiles, column_tiles), 255, dtype=torch.uint8)
        open_tiles = torch.empty(1 + tiles * column_tiles, **integers)
        groups = torch.empty(-(-tiles // group_tiles), 1 + column_tiles, **integers)
        found = _Found(*(x.data_ptr() for x in (order, ref_order, states, open_tiles, groups)))
        self.forward(logits, labels, found=ctypes.addressof(found), **inputs_and_options)
        return Certificates(
            order,
            ref_order,
            states,
            open_tiles[1 : 1 + int(open_tiles[0])],
            [group[1 : 1 + int(group[0])] for group in groups],
        )

    def workspace_bytes(self, rows: int, classes: int, ref_rows: int = 0, levels: int = 1) -> int:
        """Memory of one float32 call with all gradients, beyond its arguments and results."""
        something = ctypes.c_double()
        pointer = ctypes.addressof(something)
        call = _Call(
            rows=rows,
            classes=classes,
            levels=levels,
            ref_rows=ref_rows,
            labels=pointer,
            gradient=GRADIENTS["both"],
            reduction=REDUCTIONS["mean"],
            stats=pointer,
            grad=pointer,
            ref_grad=pointer if ref_rows else None,
            certified=self.certified,
        )
        taken: int = self.library.workspace_bytes_float32(ctypes.byref(call))
        if taken < 0:
            raise EmulationError("the workspace is not taken as it is measured")
        return taken

    def _call(
        self,
        inputs: dict[str, Tensor | None],
        results: dict[str, Tensor | None],
        *,
        margin: float = 2.0,
        ignore_index: int = -100,
        similar_weight: float = 1.0,
        dissimilar_weight: float = 1.0,
        balance: bool = False,
        precision: str = "fp32",
        chunk_rows: int = 0,
        product_splits: int = 0,
        pair_blocks: int = 0,
        seed: int = 0,
        **more: Any,
    ) -> None:
        for name in [name for name, value in more.items() if isinstance(value, Tensor)]:
            inputs[name] = more.pop(name)
        # As _arguments.py prepares them for the operators.
        tensors = {name: x.detach().contiguous() for name, x in inputs.items() if x is not None}
        logits, ref_logits = tensors["logits"], tensors.get("ref_logits")
        for name in ("sample_weights", "ref_sample_weights"):
            if name in tensors:
                tensors[name] = tensors[name].to(accumulation_dtype(logits))
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        labels = tensors.get("labels")
        launches = ctypes.c_int64()
        written = {name: x.data_ptr() for name, x in results.items() if x is not None}
        call = _Call(
            element=ELEMENTS[logits.dtype],
            rows=logits.shape[0],
            classes=logits.shape[1],
            levels=labels.shape[1] if labels is not None and labels.dim() == 2 else 1,
            ref_rows=0 if ref_logits is None else ref_logits.shape[0],
            margin=margin,
            ignore_index=ignore_index,
            similar_weight=similar_weight,
            dissimilar_weight=dissimilar_weight,
            balance=balance,
            precision=PRECISIONS[precision],
            tiled=self.tiled,
            arithmetic=ARITHMETICS[self.arithmetic],
            chunk_rows=chunk_rows,
            product_splits=product_splits,
            pair_blocks=pair_blocks,
            certified=self.certified,
            seed=seed,
            launches=ctypes.addressof(launches),
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
            **written,
            **more,
        )
        message = self.library.emulate_pair_kl_hinge(ctypes.byref(call))
        if message is not None:
            raise EmulationError(message.decode())
        self.launches = launches.value
        for name, now in tensors.items():
            if not torch.equal(now.view(torch.uint8), before[name].view(torch.uint8)):
                raise EmulationError(f"the kernels wrote into {name}")


def _unwritten(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.full(tuple(shape), torch.nan, dtype=dtype)


def accumulation_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
