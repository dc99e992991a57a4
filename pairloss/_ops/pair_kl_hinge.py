"""``torch.ops.pairloss.pair_kl_hinge``: shape function, autograd, autocast, and the call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

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
    options = (
        float(margin),
        GRADIENTS[gradient],
        REDUCTIONS[reduction],
        ignore_index,
        with_grad,
    )
    if torch.compiler.is_compiling():
        call: Any = torch.ops.pairloss.pair_kl_hinge.default
    elif with_grad or _is_transformed():
        call = _Node.apply
    else:
        call = _below_autograd
    loss, stats, _ = call(logits, labels, *options)
    return loss, stats


def _is_transformed() -> bool:
    """Whether functorch or forward-mode AD looks on: they must see the autograd formula."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _below_autograd(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without its autograd layer: Python called from the dispatcher, 40 us."""
    with torch._C._AutoDispatchBelowAutograd():
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.pairloss.pair_kl_hinge.default(*arguments)
        return result


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


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    logits, labels, margin, gradient, reduction, ignore_index, with_grad = inputs
    _, stats, grad = output
    ctx.mark_non_differentiable(stats, grad)
    ctx.set_materialize_grads(False)
    ctx.options = (margin, gradient, ignore_index)
    ctx.per_row = reduction == _NONE
    ctx.with_grad = with_grad
    # The logits make the second derivative fail instead of being taken for zero.
    ctx.save_for_backward(logits, labels if ctx.per_row else grad)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    grad_logits = None
    if grad_loss is not None:
        logits, saved = ctx.saved_tensors
        if ctx.per_row:
            grad_logits = _RowNode.apply(grad_loss, logits, saved, *ctx.options)
        elif ctx.with_grad:
            # Half logits keep a float32 gradient until it has been scaled: a mean over all pairs is
            # below float16's range long before a loss scaler's factor comes in.
            grad_logits = (saved * grad_loss).to(logits.dtype)
            if torch.is_grad_enabled():  # create_graph=True
                grad_logits = _NoSecondDerivative.apply(grad_logits, logits)
        else:
            raise RuntimeError(
                "pairloss.pair_kl_hinge: backward of an evaluation with with_grad=False"
            )
    return grad_logits, None, None, None, None, None, None


def _refuse(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
    raise RuntimeError(
        "pairloss.pair_kl_hinge_loss: the fused kernels have no second and no forward-mode "
        'derivative; use impl="reference", which is differentiable to any order'
    )


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


class _NoSecondDerivative(torch.autograd.Function):
    """The identity of a gradient, connected to what it was computed from."""

    @staticmethod
    def forward(grad: Tensor, logits: Tensor) -> Tensor:
        return grad.view_as(grad)

    generate_vmap_rule = True
    setup_context = staticmethod(_save_nothing)
    backward = staticmethod(_refuse)


class _RowNode(torch.autograd.Function):
    """pair_kl_hinge_backward, for functorch too: a registered formula is not enough for that."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        grad: Tensor = torch.ops.pairloss.pair_kl_hinge_backward.default(*arguments)
        return grad

    generate_vmap_rule = True
    setup_context = staticmethod(_save_nothing)
    backward = staticmethod(_refuse)
    jvp = staticmethod(_refuse)


class _Node(torch.autograd.Function):
    """The registered autograd formula for eager mode, with half the latency, and for functorch."""

    generate_vmap_rule = True
    forward = staticmethod(_below_autograd)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse)


def _register() -> None:
    library = torch.library
    library.register_fake("pairloss::pair_kl_hinge", _fake)
    library.register_fake("pairloss::pair_kl_hinge_backward", _fake_backward)
    library.register_autograd("pairloss::pair_kl_hinge", _backward, setup_context=_setup_context)
    library.register_autograd("pairloss::pair_kl_hinge_backward", _refuse)
    # Like the losses of torch.nn.functional: float32 inside an autocast region.
    for device in ("cpu", "cuda"):
        library.register_autocast("pairloss::pair_kl_hinge", device, torch.float32)


if _library.status().cpu_loaded:
    _register()
