"""The CUDA kernels for lists of pairs on the emulation: like torch.ops.pairloss, on the CPU."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tests.cuda_emulation.emulation import ELEMENTS, EmulationError, build

_POINTERS = ("logits", "pairs", "sorted", "order", "similar", "pair_weights", "upstream")


class _Call(ctypes.Structure):
    """Call of pair_list_kl_hinge.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("element", "rows", "classes", "count")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_double) for name in ("margin", "similar_weight", "dissimilar_weight")),
        *((name, ctypes.c_int64) for name in ("balance", "gradient", "reduction")),
        *((name, ctypes.c_void_p) for name in ("loss", "stats", "grad")),
        ("seed", ctypes.c_int64),
    ]


class PairListKernels:
    """``seed``: the order of threads and blocks."""

    def __init__(self) -> None:
        self.library = build("pair_list_kl_hinge")
        self.library.emulate_pair_list_kl_hinge.restype = ctypes.c_char_p

    def forward(
        self, arguments: tuple[object, ...], seed: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """pair_list_kl_hinge. Results start as NaN: what the kernels do not write is seen."""
        logits, reduction, with_grad = arguments[0], arguments[6], arguments[-1]
        assert isinstance(logits, Tensor)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        loss = torch.full(logits.shape[:1] if reduction == 0 else (), torch.nan, dtype=dtype)
        stats = torch.full((5,), torch.nan, dtype=torch.float64)
        grad = None
        if with_grad and reduction != 0:
            grad = torch.full(logits.shape, torch.nan, dtype=dtype)
        self._call(arguments, loss=loss, stats=stats, grad=grad, seed=seed)
        return loss, stats, grad

    def backward(self, upstream: Tensor, arguments: tuple[object, ...], seed: int = 0) -> Tensor:
        """pair_list_kl_hinge_backward: the gradient of reduction "none"."""
        logits = arguments[0]
        assert isinstance(logits, Tensor)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        grad = torch.full(logits.shape, torch.nan, dtype=logits.dtype)
        self._call(arguments, upstream=upstream.to(dtype).contiguous(), grad=grad, seed=seed)
        return grad

    def _call(self, arguments: tuple[object, ...], seed: int, **tensors: Tensor | None) -> None:
        logits, pairs, similar, pair_weights, margin, gradient, reduction, *kinds, _ = arguments
        logits, pairs = logits.detach().contiguous(), pairs.contiguous()
        ordered = pairs.flatten().sort(stable=True)  # the operator has torch sort on the GPU
        tensors |= {"logits": logits, "pairs": pairs, "similar": similar.contiguous()}
        tensors |= {"sorted": ordered.values, "order": ordered.indices}
        tensors["pair_weights"] = pair_weights
        similar_weight, dissimilar_weight, balance = kinds
        call = _Call(
            element=ELEMENTS[logits.dtype],
            rows=logits.shape[0],
            classes=logits.shape[1],
            count=len(pairs),
            margin=margin,
            similar_weight=similar_weight,
            dissimilar_weight=dissimilar_weight,
            balance=balance,
            gradient=gradient,
            reduction=reduction,
            seed=seed,
            **{name: x.data_ptr() for name, x in tensors.items() if x is not None},
        )
        message = self.library.emulate_pair_list_kl_hinge(ctypes.byref(call))
        if message is not None:
            raise EmulationError(message.decode())
