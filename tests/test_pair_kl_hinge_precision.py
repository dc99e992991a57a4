"""The argument ``precision``: where it goes, and that the CPU, which ignores it, takes every one.

What it does to the results of the CUDA kernels is in cuda_emulation/test_precision.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pairloss
from pairloss import (
    CrossBatchMemory,
    PairKLHingeLoss,
    loss_and_grad,
    pair_kl_hinge_loss,
    pair_kl_hinge_loss_from_similarity,
)
from pairloss._arguments import PRECISIONS
from tests import cases, operator

pytestmark = pytest.mark.usefixtures("one_thread")

REDUCED = [name for name in PRECISIONS if name != "fp32"]
reduced = pytest.mark.parametrize("precision", REDUCED)
BATCH = cases.Case(17, 10, ignored="some")
Call = Callable[..., Any]


class Recorder(TorchDispatchMode):
    """The codes that the operators get."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        schema = func._schema
        if schema.name.startswith("pairloss::"):
            place = [argument.name for argument in schema.arguments].index("precision")
            self.codes.append((schema.name.removeprefix("pairloss::"), args[place]))
        return func(*args, **(kwargs or {}))


def with_module(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return PairKLHingeLoss(**options)(logits, labels)


def with_similarity(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return pair_kl_hinge_loss_from_similarity(logits, labels[:, None] == labels, **options)


def with_memory(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    criterion = PairKLHingeLoss(**options)
    return CrossBatchMemory(criterion, size=9, columns=logits.shape[1]).to(logits.device)(
        logits, labels
    )


def with_metric_learning(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    pytest.importorskip("pytorch_metric_learning")
    from pairloss.metric_learning import PairKLHingeLoss as OfMetricLearning

    return OfMetricLearning(**options)(logits, labels)


CALLS: dict[str, Call] = {
    "function": pair_kl_hinge_loss,
    "module": with_module,
    "similarity": with_similarity,
    "memory": with_memory,
    "distributed": pairloss.distributed.pair_kl_hinge_loss,
    "metric_learning": with_metric_learning,
    "loss_and_grad": lambda *inputs, **options: torch.cat(
        [x.flatten() for x in loss_and_grad(*inputs, **options)]
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_operator_gets_it(call: str, device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    for precision, code in PRECISIONS.items():
        with Recorder() as recorder:
            CALLS[call](logits, labels, precision=precision)
        assert recorder.codes
        assert {got for _, got in recorder.codes} == {code}


def test_the_backward_of_none_gets_it(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    for precision, code in PRECISIONS.items():
        with Recorder() as recorder:
            loss = pair_kl_hinge_loss(logits, labels, reduction="none", precision=precision)
            loss.square().sum().backward()
        assert recorder.codes == [("pair_kl_hinge", code), ("pair_kl_hinge_backward", code)]


@pytest.mark.parametrize("call", CALLS)
def test_others_are_refused(call: str) -> None:
    with pytest.raises(ValueError, match="precision: expected one of \"fp32\", .*, got 'bf16'"):
        CALLS[call](torch.zeros(4, 3), torch.arange(4), precision="bf16")


@reduced
@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_small_batches_are_more_accurate(
    dtype: torch.dtype, impl: str, precision: str, device: torch.device
) -> None:
    """So are all batches on the CPU: the same bits."""
    logits, labels = cases.make(BATCH._replace(dtype=dtype)).to(device)
    for reduction in ("none", "mean"):
        results = []
        for given in ("fp32", precision):
            loss = pair_kl_hinge_loss(
                logits, labels, reduction=reduction, precision=given, impl=impl
            )
            results.append((loss, *torch.autograd.grad(loss, logits, 0.3 * torch.ones_like(loss))))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


def test_the_module_names_it() -> None:
    assert "precision" not in repr(PairKLHingeLoss())
    assert "precision='tf32'" in repr(PairKLHingeLoss(precision="tf32"))


def test_opcheck(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    arguments = operator.arguments(logits, labels, precision=PRECISIONS["bf16x3"])
    torch.library.opcheck(torch.ops.pairloss.pair_kl_hinge.default, arguments)
    arguments = operator.arguments(logits.detach(), labels, precision=PRECISIONS["tf32"])
    backward = torch.ops.pairloss.pair_kl_hinge_backward.default
    torch.library.opcheck(backward, (torch.randn(17, device=device), *arguments))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compile_without_a_graph_break(reduction: str, device: torch.device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(pair_kl_hinge_loss, fullgraph=True, backend="aot_eager")
    logits, labels = cases.make(BATCH).to(device)
    results = []
    for function in (pair_kl_hinge_loss, compiled):
        loss = function(logits, labels, reduction=reduction, precision="bf16x3")
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), logits)))
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-5, atol=1e-7)


def test_autocast(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    with torch.autocast(device.type, torch.bfloat16), Recorder() as recorder:
        loss = pair_kl_hinge_loss(logits.bfloat16(), labels, precision="tf32")
    assert loss.dtype == torch.float32
    assert recorder.codes == [("pair_kl_hinge", PRECISIONS["tf32"])]
