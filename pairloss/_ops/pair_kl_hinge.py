"""``torch.ops.pairloss.pair_kl_hinge``: shape function, autograd, autocast, and the call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pairloss import _library
from pairloss._arguments import REDUCTIONS, Inputs, Options, device_type

_NONE = REDUCTIONS["none"]

# Where the operator's arguments stand (see csrc/schema.cpp): the tensors of Inputs come first.
_TENSORS = len(Inputs._fields)
_LOGITS, _REF_LOGITS = Inputs._fields.index("logits"), Inputs._fields.index("ref_logits")
_REDUCTION = _TENSORS + 2
_ARGUMENTS = _TENSORS + 10
_of_labels = (
    torch.ops.pairloss.pair_kl_hinge_of_labels.default
    if _library.status().autograd_loaded
    else None
)


def pair_kl_hinge(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """Loss and statistics (5, G), differentiable in the logits. The arguments have been checked."""
    logits, ref_logits = inputs.logits, inputs.ref_logits
    _library.require(device_type(logits))
    # The loss is one number, so its gradient costs least beside it; but only if somebody wants it.
    enabled = torch.is_grad_enabled()
    with_grad = enabled and logits.requires_grad
    with_ref_grad = enabled and ref_logits is not None and ref_logits.requires_grad
    arguments = (*inputs, *options.codes, with_grad, with_ref_grad)
    if torch.compiler.is_compiling():
        return torch.ops.pairloss.pair_kl_hinge.default(*arguments)[:2]
    if _is_transformed():
        return _Node.apply(*arguments)[:2]
    if not (with_grad or with_ref_grad):
        return _below_autograd(*arguments)[:2]
    stats: list[Tensor] = []
    loss: Tensor = _EagerNode.apply(logits, ref_logits, arguments, stats)
    return loss, stats[0]


def pair_kl_hinge_of_labels(
    logits: Tensor, labels: Tensor, options: Options, with_stats: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The same by csrc/autograd/: a shortcut, taken before any check, that saves 20 us per step.

    None for what that library does not take; the statistics also if they are not asked for.
    """
    if (
        _of_labels is None
        or type(logits) is not Tensor
        or type(labels) is not Tensor
        or not (logits.is_cpu or (logits.is_cuda and _library.status().cuda_loaded))
        or torch.compiler.is_compiling()
        or _is_transformed()
    ):
        return None, None
    if with_stats:
        return _of_labels(logits, labels, *options.changed_codes, with_stats=True)
    return _of_labels(logits, labels, *options.changed_codes)


def _is_transformed() -> bool:
    """functorch and forward-mode AD must see the autograd formula."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _below_autograd(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator without its autograd layer: Python called from the dispatcher, 40 us."""
    with torch._C._AutoDispatchBelowAutograd():
        result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.pairloss.pair_kl_hinge.default(
            *arguments
        )
        return result


# ---- Shapes -------------------------------------------------------------------------------------


def _fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = Inputs(*arguments[:_TENSORS])
    logits, reduction = inputs.logits, arguments[_REDUCTION]
    with_grad, with_ref_grad = arguments[-2:]
    per_row = reduction == _NONE
    dtype = _accumulation_dtype(logits.dtype)
    loss = logits.new_empty(logits.shape[:1] if per_row else (), dtype=dtype)
    levels = inputs.labels.shape[1] if inputs.has_levels and inputs.labels is not None else 1
    stats = logits.new_empty((5, levels), dtype=torch.float64)
    return (
        loss,
        stats,
        logits.new_empty(logits.shape if with_grad and not per_row else (0,), dtype=dtype),
        logits.new_empty(
            inputs.ref_logits.shape
            if with_ref_grad and not per_row and inputs.ref_logits is not None
            else (0,),
            dtype=dtype,
        ),
    )


def _fake_backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    inputs = Inputs(*arguments[:_TENSORS])
    logits = inputs.logits
    with_grad, with_ref_grad = arguments[-2:]
    return (
        logits.new_empty(logits.shape if with_grad else (0,)),
        logits.new_empty(
            inputs.ref_logits.shape if with_ref_grad and inputs.ref_logits is not None else (0,)
        ),
    )


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- Autograd -----------------------------------------------------------------------------------


def _save(ctx: Any, arguments: tuple[Any, ...], grad: Tensor, ref_grad: Tensor) -> None:
    """What the backward needs; also the logits, so that a second derivative fails."""
    ctx.set_materialize_grads(False)
    ctx.per_row = arguments[_REDUCTION] == _NONE
    if ctx.per_row:
        ctx.save_for_backward(*arguments[:_TENSORS])
        ctx.options = arguments[_TENSORS:]
    else:
        ctx.options = arguments[-2:]
        ctx.save_for_backward(arguments[_LOGITS], grad, arguments[_REF_LOGITS], ref_grad)


def _gradients(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Of the logits and of the reference set's."""
    if grad_loss is None:
        return None, None
    with_grad, with_ref_grad = ctx.options[-2:]
    if not (with_grad or with_ref_grad):
        raise RuntimeError("pairloss.pair_kl_hinge: backward of an evaluation with with_grad=False")
    if ctx.per_row:
        grads = _RowNode.apply(grad_loss, *ctx.saved_tensors, *ctx.options)
        return grads[0] if with_grad else None, grads[1] if with_ref_grad else None
    logits, grad, ref_logits, ref_grad = ctx.saved_tensors
    return (
        _scaled(grad, grad_loss, logits) if with_grad else None,
        _scaled(ref_grad, grad_loss, ref_logits) if with_ref_grad else None,
    )


def _scaled(grad: Tensor, grad_loss: Tensor, logits: Tensor) -> Tensor:
    # Half logits keep a float32 gradient until it has been scaled: a mean over all pairs is below
    # float16's range long before a loss scaler's factor comes in.
    if not _is_one(grad_loss):
        grad = grad * grad_loss
    if grad.dtype != logits.dtype:
        grad = grad.to(logits.dtype)
    if torch.is_grad_enabled():  # create_graph=True
        grad = _NoSecondDerivative.apply(grad, logits)
    return grad


def _is_one(grad_loss: Tensor) -> bool:
    """Whether this is loss.backward(), where it can be told without waiting for a device.

    The gradient then goes on as it is: with retain_graph=True autograd copies it, since the graph
    still holds it. The multiplication would be a fifth of the time at N = 1024, K = 4096.
    """
    if type(grad_loss) is not Tensor or not grad_loss.is_cpu:  # FakeTensor is another type
        return False
    if torch.compiler.is_compiling():
        return False
    try:
        return grad_loss.item() == 1.0
    except RuntimeError:  # under vmap, which has several
        return False


def _refuse(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
    raise RuntimeError(
        "pairloss.pair_kl_hinge_loss: the fused kernels have no second and no forward-mode "
        'derivative; use impl="reference", which is differentiable to any order'
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, stats, grad, ref_grad = output
    ctx.mark_non_differentiable(stats, grad, ref_grad)
    _save(ctx, inputs, grad, ref_grad)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    grads: list[Tensor | None] = [None] * _ARGUMENTS
    grads[_LOGITS], grads[_REF_LOGITS] = _gradients(ctx, grad_loss)
    return tuple(grads)


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


class _EagerNode(torch.autograd.Function):
    """The registered autograd formula for eager mode, with a third of the latency.

    What carries no gradient goes around autograd: the arguments as one object, and the statistics
    through a list.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ref_logits: Tensor | None,
        arguments: tuple[Any, ...],
        stats_of_call: list[Tensor],
    ) -> Tensor:
        loss, stats, grad, ref_grad = _below_autograd(*arguments)
        stats_of_call.append(stats)
        _save(ctx, arguments, grad, ref_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, grad_loss), None, None)


class _Node(torch.autograd.Function):
    """The registered autograd formula for functorch."""

    generate_vmap_rule = True
    forward = staticmethod(_below_autograd)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse)


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
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        grads: tuple[Tensor, Tensor] = torch.ops.pairloss.pair_kl_hinge_backward.default(*arguments)
        return grads

    generate_vmap_rule = True
    setup_context = staticmethod(_save_nothing)
    backward = staticmethod(_refuse)
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
