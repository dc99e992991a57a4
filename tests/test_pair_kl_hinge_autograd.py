"""The autograd node in C++ beside the one in Python: which calls get it, and that they are alike.

What both must do is tested where the fixture ``autograd`` is used.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from pairloss import _library, pair_kl_hinge_loss
from pairloss._arguments import DEFAULT_CODES, check_options
from tests import cases
from tests.cases import Case

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not _library.status().autograd_loaded, reason=str(_library.status().autograd_problem)
    ),
]

BATCH = Case(17, 10, ignored="some")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"margin": 0.7},
    {"gradient": "second"},
    {"reduction": "sum"},
    {"ignore_index": 1},
    {"similar_weight": 0.3},
    {"dissimilar_weight": 1.7},
    {"balance": "pairs"},
    {"precision": "tf32"},
    {"impl": "fused"},
)


def in_cpp(loss: Tensor) -> bool:
    """Whether the node is the one of csrc/autograd/."""
    assert loss.grad_fn is not None
    return "PairKLHinge" in loss.grad_fn.name()


def everything_of(logits: Tensor, labels: Tensor, upstream: float, **options: Any) -> list[Tensor]:
    """Loss, statistics and gradient; the loss by itself; the value without a gradient."""
    loss, stats = pair_kl_hinge_loss(logits, labels, **options, return_stats=True)
    (grad,) = torch.autograd.grad(loss, logits, torch.full_like(loss, upstream))
    alone = pair_kl_hinge_loss(logits, labels, **options)
    assert in_cpp(loss) == in_cpp(alone)
    value, more = pair_kl_hinge_loss(logits.detach(), labels, **options, return_stats=True)
    return [loss, *stats, grad, alone, value, *more]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_both_nodes_give_the_same_bits(
    options: dict[str, Any],
    levels: bool,
    upstream: float,
    dtype: torch.dtype,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, labels = cases.make(BATCH._replace(dtype=dtype)).to(device)
    if levels:
        labels = torch.stack([labels, labels.clamp(max=2)], dim=1)
    in_one = everything_of(logits, labels, upstream, **options)
    assert in_cpp(in_one[0])
    monkeypatch.setattr(sys.modules["pairloss._ops.pair_kl_hinge"], "_of_labels", None)
    in_other = everything_of(logits, labels, upstream, **options)
    assert not in_cpp(in_other[0])
    for one, other in zip(in_one, in_other, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_calls_with_more_than_a_batch_and_its_labels(device: torch.device) -> None:
    """They take the general way, whose arguments have tests of their own."""
    logits, labels = cases.make(BATCH).to(device)
    weights = torch.ones(len(labels), device=device)
    more: tuple[dict[str, Any], ...] = (
        {"labels": labels.int()},
        {"labels": labels, "reduction": "none"},
        {"labels": labels, "sample_weights": weights},
        {"labels": labels, "level_weights": [1.0]},
        {"labels": labels, "ref_logits": logits, "ref_labels": labels},
        {"labels": labels, "impl": "reference"},
    )
    for arguments in more:
        loss = pair_kl_hinge_loss(logits, **arguments)
        assert loss.sum() > 0
        assert not in_cpp(loss)


def test_the_operator_declines_what_it_does_not_take(device: torch.device) -> None:
    """Which never reaches a kernel: the checks behind it say what is wrong."""
    logits, labels = (x.detach() for x in cases.make(BATCH).to(device))
    operator = torch.ops.pairloss.pair_kl_hinge_of_labels.default
    loss, stats = operator(logits, labels, *DEFAULT_CODES, with_stats=True)
    assert loss > 0
    assert stats.shape == (5, 1)
    rows = len(labels)
    for bad_logits, bad_labels in (
        (logits[0], labels),
        (logits[:, :0], labels),
        (logits.to(torch.int32), labels),
        (logits.to(torch.complex64), labels),
        (logits.to(torch.float8_e5m2), labels),
        (logits, labels[: rows - 1]),
        (logits, labels[: rows - 1, None]),
        (logits, labels[:, None, None]),
        (logits, labels[:, None][:, :0]),
        (logits, labels.to(torch.int32)),
        (logits, labels.to("meta")),
    ):
        assert operator(bad_logits, bad_labels, *DEFAULT_CODES) == (None, None)
    assert operator(logits, labels, reduction=0) == (None, None)  # "none"


def test_the_operator_has_the_defaults_of_the_function() -> None:
    schema = torch.ops.pairloss.pair_kl_hinge_of_labels.default._schema
    assert tuple(argument.default_value for argument in schema.arguments[2:10]) == DEFAULT_CODES
    defaults = inspect.signature(pair_kl_hinge_loss).parameters
    names = inspect.signature(check_options).parameters
    options = check_options(*(defaults[name].default for name in names))
    assert options.codes == DEFAULT_CODES
    assert options.changed_codes == ()


def test_opcheck(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    torch.library.opcheck(
        torch.ops.pairloss.pair_kl_hinge_of_labels.default,
        (logits, labels, *DEFAULT_CODES),
        {"with_stats": True},
    )


def test_dispatch_modes_see_the_general_operator(device: torch.device) -> None:
    seen = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    logits, labels = cases.make(BATCH).to(device)
    with Seen():
        pair_kl_hinge_loss(logits, labels)
    assert seen == [torch.ops.pairloss.pair_kl_hinge.default]


@pytest.mark.usefixtures("autograd")
def test_second_backward_without_retain_graph(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    loss = pair_kl_hinge_loss(logits, labels)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.usefixtures("autograd")
def test_what_comes_after_needs_no_gradient(device: torch.device) -> None:
    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.set_materialize_grads(False)
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            return None

    logits, labels = cases.make(BATCH).to(device)
    Constant.apply(pair_kl_hinge_loss(logits, labels)).backward()
    assert logits.grad is None


@pytest.mark.usefixtures("autograd")
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_compiled_autograd(factor: float, device: torch.device) -> None:
    """Where the upstream gradient has no value to look at."""
    logits, labels = cases.make(BATCH).to(device)
    (expected,) = torch.autograd.grad(pair_kl_hinge_loss(logits, labels) * factor, logits)
    with compiled_autograd._enable(torch.compile(backend="eager")):
        (pair_kl_hinge_loss(logits, labels) * factor).backward()
    assert torch.equal(logits.grad, expected)


@pytest.mark.usefixtures("autograd")
def test_anomaly_detection_names_the_call(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    with pytest.warns(UserWarning), torch.autograd.detect_anomaly():
        loss = pair_kl_hinge_loss(logits, labels)
        with (
            pytest.warns(UserWarning, match="test_anomaly_detection_names_the_call"),
            pytest.raises(RuntimeError, match=re.escape("returned nan values")),
        ):
            loss.backward(torch.full_like(loss, float("nan")))
