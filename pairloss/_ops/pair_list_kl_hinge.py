"""``torch.ops.pairloss.pair_list_kl_hinge``: shape function, autograd, autocast, and the call.

Built like its sibling for all pairs of a batch, whose docstrings say why each part is there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pairloss import _library
from pairloss._arguments import GRADIENTS, REDUCTIONS, Options, PairListInputs, device_type
from pairloss._ops.pair_kl_hinge import (
    _accumulation_dtype,
    _refuse,
    _save_nothing,
    _scaled,
)

_NONE = REDUCTIONS["none"]

# Where the operator's arguments stand (see csrc/schema.cpp): the tensors come first.
_TENSORS = len(PairListInputs._fields)
_REDUCTION = _TENSORS + 2
_ARGUMENTS = _TENSORS + 7


def pair_list_kl_hinge(inputs: PairListInputs, options: Options) -> tuple[Tensor, Tensor]:
    """Loss and statistics (5, 1), differentiable in the logits. The arguments have been checked."""
    _library.require(device_type(inputs.logits))
    with_grad = torch.is_grad_enabled() and inputs.logits.requires_grad
    arguments = (
        *inputs,
        options.margin,
        GRADIENTS[options.gradient],
        REDUCTIONS[options.reduction],
        options.similar_weight,
        options.dissimilar_weight,
        options.balance,
        with_grad,
    )
    if torch.compiler.is_compiling():
        return torch.ops.pairloss.pair_list_kl_hinge.default(*arguments)[:2]
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _Node.apply(*arguments)[:2]
    if not with_grad:
        return _below_autograd(*arguments)[:2]
    stats: list[Tensor] = []
    loss: Tensor = _EagerNode.apply(inputs.logits, arguments, stats)
    return loss, stats[0]


def _below_autograd(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        result: tuple[Tensor, Tensor, Tensor]
        result = torch.ops.pairloss.pair_list_kl_hinge.default(*arguments)
        return result


# ---- Shapes -------------------------------------------------------------------------------------


def _fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    logits, per_row = arguments[0], arguments[_REDUCTION] == _NONE
    dtype = _accumulation_dtype(logits.dtype)
    return (
        logits.new_empty(logits.shape[:1] if per_row else (), dtype=dtype),
        logits.new_empty((5, 1), dtype=torch.float64),
        logits.new_empty(logits.shape if arguments[-1] and not per_row else (0,), dtype=dtype),
    )


def _fake_backward(grad_output: Tensor, *arguments: Any) -> Tensor:
    logits: Tensor = arguments[0]
    return logits.new_empty(logits.shape)


# ---- Autograd -----------------------------------------------------------------------------------


def _save(ctx: Any, arguments: tuple[Any, ...], grad: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.per_row = arguments[_REDUCTION] == _NONE
    ctx.options = arguments[_TENSORS:]
    ctx.save_for_backward(*(arguments[:_TENSORS] if ctx.per_row else (arguments[0], grad)))


def _gradient(ctx: Any, grad_loss: Tensor | None) -> Tensor | None:
    if grad_loss is None:
        return None
    if not ctx.options[-1]:
        raise RuntimeError(
            "pairloss.pair_list_kl_hinge: backward of an evaluation with with_grad=False"
        )
    if ctx.per_row:
        grad: Tensor = _RowNode.apply(grad_loss, *ctx.saved_tensors, *ctx.options)
        return grad
    logits, grad = ctx.saved_tensors
    return _scaled(grad, grad_loss, logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, stats, grad = output
    ctx.mark_non_differentiable(stats, grad)
    _save(ctx, inputs, grad)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    return (_gradient(ctx, grad_loss), *[None] * (_ARGUMENTS - 1))


class _EagerNode(torch.autograd.Function):
    """The registered autograd formula for eager mode, with a third of the latency."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, arguments: tuple[Any, ...], stats_of_call: list[Tensor]
    ) -> Tensor:
        loss, stats, grad = _below_autograd(*arguments)
        stats_of_call.append(stats)
        _save(ctx, arguments, grad)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, None, None]:
        return _gradient(ctx, grad_loss), None, None


class _Node(torch.autograd.Function):
    """The registered autograd formula for functorch."""

    generate_vmap_rule = True
    forward = staticmethod(_below_autograd)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse)


class _RowNode(torch.autograd.Function):
    """pair_list_kl_hinge_backward, for functorch too."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        grad: Tensor = torch.ops.pairloss.pair_list_kl_hinge_backward.default(*arguments)
        return grad

    generate_vmap_rule = True
    setup_context = staticmethod(_save_nothing)
    backward = staticmethod(_refuse)
    jvp = staticmethod(_refuse)


def _register() -> None:
    library = torch.library
    name = "pairloss::pair_list_kl_hinge"
    library.register_fake(name, _fake)
    library.register_fake(f"{name}_backward", _fake_backward)
    library.register_autograd(name, _backward, setup_context=_setup_context)
    library.register_autograd(f"{name}_backward", _refuse)
    for device in ("cpu", "cuda"):
        library.register_autocast(name, device, torch.float32)


if _library.status().cpu_loaded:
    _register()
