"""``torch.ops.pairloss.pair_kl_hinge``: shape function, autograd, autocast, and the call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pairloss import _library
from pairloss._arguments import GRADIENTS, REDUCTIONS

_NONE = REDUCTIONS["none"]


def pair_kl_hinge(
    logits: Tensor, labels: Tensor, margin: float, gradient: str, reduction: str, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Loss and statistics (5,), differentiable in ``logits``. The arguments have been checked."""
    _library.require(logits.device.type)
    # The loss is one number, so its gradient costs least beside it; but only if somebody wants it.
    with_grad = logits.requires_grad and torch.is_grad_enabled()
    loss, stats, _ = torch.ops.pairloss.pair_kl_hinge.default(
        logits,
        labels,
        float(margin),
        GRADIENTS[gradient],
        REDUCTIONS[reduction],
        ignore_index,
        with_grad,
    )
    return loss, stats.detach()  # else whoever keeps the statistics keeps the graph


def _fake(
    logits: Tensor,
    labels: Tensor,
    margin: float,
    gradient: int,
    reduction: int,
    ignore_index: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _accumulation_dtype(logits.dtype)
    loss = logits.new_empty(logits.shape[:1] if reduction == _NONE else (), dtype=dtype)
    stats = logits.new_empty((5,), dtype=torch.float64)
    saved = with_grad and reduction != _NONE
    return loss, stats, logits.new_empty(logits.shape if saved else (0,), dtype=dtype)


def _fake_backward(
    grad_output: Tensor,
    logits: Tensor,
    labels: Tensor,
    margin: float,
    gradient: int,
    ignore_index: int,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, margin, gradient, reduction, ignore_index, with_grad = inputs
    ctx.set_materialize_grads(False)
    ctx.dtype = logits.dtype
    ctx.with_grad = with_grad
    ctx.options = (margin, gradient, ignore_index) if reduction == _NONE else None
    if reduction == _NONE:
        ctx.save_for_backward(logits, labels)
    else:
        # An output, saved: whoever differentiates the gradient comes back to _backward with a grad_grad.
        ctx.save_for_backward(output[2])


def _backward(
    ctx: Any, grad_loss: Tensor | None, grad_stats: Tensor | None, grad_grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_grad is not None:
        raise _no_second_derivative()
    grad_logits = None
    if grad_loss is not None:
        if ctx.options is not None:
            logits, labels = ctx.saved_tensors
            grad_logits = torch.ops.pairloss.pair_kl_hinge_backward.default(
                grad_loss, logits, labels, *ctx.options
            )
        else:
            if not ctx.with_grad:
                raise RuntimeError(
                    "pairloss.pair_kl_hinge: backward of an evaluation with with_grad=False"
                )
            (grad,) = ctx.saved_tensors
            # Half logits keep a float32 gradient until it has been scaled: a mean over all pairs is
            # below float16's range long before a loss scaler's factor comes in.
            grad_logits = (grad * grad_loss).to(ctx.dtype)
    return grad_logits, None, None, None, None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
    raise _no_second_derivative()


def _no_second_derivative() -> RuntimeError:
    return RuntimeError(
        "pairloss.pair_kl_hinge_loss: the fused kernels have no second derivative; "
        'use impl="reference", which is differentiable to any order'
    )


def _register() -> None:
    library = torch.library
    library.register_fake("pairloss::pair_kl_hinge", _fake)
    library.register_fake("pairloss::pair_kl_hinge_backward", _fake_backward)
    library.register_autograd(
        "pairloss::pair_kl_hinge", _backward, setup_context=_setup_context
    )
    library.register_autograd(
        "pairloss::pair_kl_hinge_backward",
        _backward_backward,
        setup_context=_setup_context_backward,
    )
    # Like the losses of torch.nn.functional: float32 inside an autocast region.
    for device in ("cpu", "cuda"):
        library.register_autocast("pairloss::pair_kl_hinge", device, torch.float32)


if _library.status().cpu_loaded:
    _register()
