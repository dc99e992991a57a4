"""The operators under the rest of PyTorch: opcheck, fakes, compile, export, functorch, autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from pairloss import PairKLHingeLoss, pair_kl_hinge_loss
from tests import cases, operator, truth
from tests.cases import Case
from tests.operator import GRADIENTS, REDUCTIONS
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = Case(17, 10, ignored="some")
DOUBLE = Case(11, 4, "two", dtype=torch.float64)
SECOND_DERIVATIVE = 'impl="reference"'

reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
gradients = pytest.mark.parametrize("gradient", GRADIENTS)


# ---- opcheck -----------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@reductions
@gradients
def test_opcheck(
    gradient: str,
    reduction: str,
    dtype: torch.dtype,
    requires_grad: bool,
    device: torch.device,
) -> None:
    logits, labels = cases.make(BATCH._replace(dtype=dtype)).to(device)
    logits.requires_grad_(requires_grad)
    arguments = operator.arguments(
        logits,
        labels,
        gradient=GRADIENTS[gradient],
        reduction=REDUCTIONS[reduction],
        with_grad=requires_grad,
    )
    torch.library.opcheck(torch.ops.pairloss.pair_kl_hinge.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@gradients
def test_opcheck_of_the_backward(gradient: str, dtype: torch.dtype, device: torch.device) -> None:
    """Without gradients of its own: it refuses them, see the second derivatives below."""
    logits, labels = cases.make(BATCH._replace(dtype=dtype)).to(device)
    upstream = torch.randn(17, device=device)
    arguments = operator.arguments(logits.detach(), labels, gradient=GRADIENTS[gradient])
    torch.library.opcheck(torch.ops.pairloss.pair_kl_hinge_backward.default, (upstream, *arguments))


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_opcheck_of_other_layouts(layout: str, device: torch.device) -> None:
    logits, labels = cases.make(BATCH._replace(layout=layout)).to(device)
    for reduction in REDUCTIONS.values():
        arguments = operator.arguments(logits, labels, reduction=reduction)
        torch.library.opcheck(torch.ops.pairloss.pair_kl_hinge.default, arguments)


# ---- Shapes without data -----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@reductions
def test_meta_and_fake_tensors(reduction: str, dtype: torch.dtype, rows: int) -> None:
    def run(device: str) -> tuple[Tensor, ...]:
        logits = torch.zeros(rows, 3, dtype=dtype, device=device, requires_grad=True)
        labels = torch.zeros(rows, dtype=torch.int32, device=device)
        loss, stats = pair_kl_hinge_loss(logits, labels, reduction=reduction, return_stats=True)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        return loss, *stats, grad

    with FakeTensorMode():
        fake = run("cpu")
    for expected, *others in zip(run("cpu"), run("meta"), fake, strict=True):
        for other in others:
            assert other.shape == expected.shape
            assert other.dtype == expected.dtype
            assert other.stride() == expected.stride()
            assert other.requires_grad == expected.requires_grad


# ---- torch.compile and torch.export ------------------------------------------------------------


def step(logits: Tensor, labels: Tensor, upstream: Tensor, **options: object) -> Tensor:
    """With something before the loss and after it."""
    loss = pair_kl_hinge_loss(torch.tanh(logits) * 3, labels, **options)
    return (loss * upstream).sum() * 0.7


def check_compiled(
    compiled: Callable[..., Tensor],
    rows: int,
    reduction: str,
    device: torch.device,
    **options: object,
) -> None:
    logits, labels = cases.make(BATCH._replace(rows=rows)).to(device)
    upstream = (
        torch.randn(rows, device=device) if reduction == "none" else torch.randn((), device=device)
    )
    results = []
    for function in (step, compiled):
        loss = function(logits, labels, upstream, reduction=reduction, **options)
        results.append((loss.detach(), *torch.autograd.grad(loss, logits)))
        with torch.no_grad():
            results[-1] += (function(logits, labels, upstream, reduction=reduction, **options),)
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-5, atol=1e-7)


@pytest.fixture
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@reductions
@gradients
def test_compile_without_a_graph_break(gradient: str, reduction: str, device: torch.device) -> None:
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    check_compiled(compiled, 17, reduction, device, gradient=gradient)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_with_the_default_backend(reduction: str, device: torch.device) -> None:
    check_compiled(torch.compile(step, fullgraph=True), 17, reduction, device)


@pytest.mark.usefixtures("fresh_compiler")
@reductions
def test_compile_with_dynamic_shapes(reduction: str, device: torch.device) -> None:
    """Compiled once for every number of rows."""
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        nonlocal graphs
        graphs += 1
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    check_compiled(compiled, 17, reduction, device)
    compiled_for_17 = graphs
    for rows in (31, 64):
        check_compiled(compiled, rows, reduction, device)
    assert graphs == compiled_for_17


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_with_stats_and_the_module(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    module = PairKLHingeLoss(return_stats=True)
    loss, stats = module(logits, labels)
    compiled_loss, compiled_stats = torch.compile(module, fullgraph=True, backend="aot_eager")(
        logits, labels
    )
    torch.testing.assert_close(compiled_loss, loss)
    assert not any(value.requires_grad for value in compiled_stats)
    for expected, actual in zip(stats, compiled_stats, strict=True):
        torch.testing.assert_close(actual, expected)
    (compiled_grad,) = torch.autograd.grad(compiled_loss, logits)
    torch.testing.assert_close(compiled_grad, torch.autograd.grad(loss, logits)[0])


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_errors_are_the_same(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    compiled = torch.compile(pair_kl_hinge_loss, backend="aot_eager")
    with pytest.raises(ValueError, match="labels: expected shape"):
        compiled(logits, labels[:3])


@pytest.mark.usefixtures("fresh_compiler")
def test_export(device: torch.device) -> None:
    logits, labels = (x.detach() for x in cases.make(BATCH).to(device))
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(
        PairKLHingeLoss(margin=1.0), (logits, labels), dynamic_shapes=({0: rows}, {0: rows})
    )
    more, more_labels = (x.detach() for x in cases.make(BATCH._replace(rows=31)).to(device))
    expected = pair_kl_hinge_loss(more, more_labels, margin=1.0)
    torch.testing.assert_close(program.module()(more, more_labels), expected)


# ---- functorch and forward mode ----------------------------------------------------------------


@reductions
@gradients
def test_func_grad(gradient: str, reduction: str, device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    upstream = torch.randn(17, device=device) if reduction == "none" else torch.tensor(1.7)
    upstream = upstream.to(device)

    def loss(z: Tensor) -> Tensor:
        value = pair_kl_hinge_loss(z, labels, gradient=gradient, reduction=reduction)
        return (value * upstream).sum()

    (expected,) = torch.autograd.grad(loss(logits), logits)
    grad, value = torch.func.grad_and_value(loss)(logits.detach())
    torch.testing.assert_close(grad, expected)
    torch.testing.assert_close(value, loss(logits).detach())
    value, vjp = torch.func.vjp(loss, logits.detach())
    torch.testing.assert_close(vjp(torch.full_like(value, 0.5))[0], expected / 2)


@reductions
def test_vmap(reduction: str, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 5, generator=generator).to(device)
    labels = (torch.arange(27).reshape(3, 9) % 4).to(device)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return pair_kl_hinge_loss(z, y, reduction=reduction)

    def grad(z: Tensor, y: Tensor) -> Tensor:
        return torch.func.grad(lambda x: loss(x, y).sum())(z)

    for function in (loss, grad):
        expected = torch.stack([function(z, y) for z, y in zip(logits, labels, strict=True)])
        torch.testing.assert_close(torch.vmap(function)(logits, labels), expected)
        expected = torch.stack([function(z, labels[0]) for z in logits])
        actual = torch.vmap(function, in_dims=(0, None))(logits, labels[0])
        torch.testing.assert_close(actual, expected)


def test_jacobian_of_row_losses(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)

    def loss(z: Tensor) -> Tensor:
        return pair_kl_hinge_loss(z, labels, reduction="none")

    expected = torch.stack(
        [torch.autograd.grad(loss(logits)[row], logits)[0] for row in range(len(labels))]
    )
    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(torch.func.jacrev(loss)(logits.detach()), expected)
    torch.testing.assert_close(jacobian(loss, logits), expected)
    torch.testing.assert_close(jacobian(loss, logits, vectorize=True), expected)


@reductions
def test_forward_mode_is_refused(reduction: str, device: torch.device) -> None:
    logits, labels = (x.detach() for x in cases.make(BATCH).to(device))

    def loss(z: Tensor) -> Tensor:
        return pair_kl_hinge_loss(z, labels, reduction=reduction)

    tangent = torch.ones_like(logits)
    for requires_grad in (False, True):
        primal = logits.clone().requires_grad_(requires_grad)
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.func.jvp(loss, (primal,), (tangent,))
        with forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
            loss(forward_ad.make_dual(primal, tangent))


# ---- Second derivatives ------------------------------------------------------------------------


@pytest.mark.usefixtures("autograd")
@pytest.mark.parametrize("upstream_requires_grad", [False, True])
@reductions
@gradients
def test_second_derivative_is_refused(
    gradient: str, reduction: str, upstream_requires_grad: bool, device: torch.device
) -> None:
    """Of the gradient alone, and where it is only a part of what is derived."""
    logits, labels = cases.make(BATCH).to(device)
    loss = pair_kl_hinge_loss(logits, labels, gradient=gradient, reduction=reduction)
    upstream = torch.rand_like(loss.detach()).requires_grad_(upstream_requires_grad)
    (grad,) = torch.autograd.grad(loss, logits, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match=SECOND_DERIVATIVE):
        (grad.square().sum() + logits.sum()).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=SECOND_DERIVATIVE):
        torch.autograd.grad(grad.sum(), logits)


@reductions
def test_second_derivative_by_functorch_is_refused(reduction: str, device: torch.device) -> None:
    logits, labels = (x.detach() for x in cases.make(BATCH).to(device))

    def loss(z: Tensor) -> Tensor:
        return pair_kl_hinge_loss(z, labels, reduction=reduction).sum()

    penalty = torch.func.grad(lambda z: torch.func.grad(loss)(z).square().sum())
    with pytest.raises(RuntimeError, match=SECOND_DERIVATIVE):
        penalty(logits)


@reductions
@gradients
def test_second_derivative_of_the_reference(
    gradient: str, reduction: str, device: torch.device
) -> None:
    batch = cases.make(DOUBLE)
    logits, labels = batch.to(device)

    def loss(z: Tensor) -> Tensor:
        return pair_kl_hinge_loss(
            z, labels, margin=batch.margin, reduction=reduction, impl="reference"
        )

    assert torch.autograd.gradgradcheck(loss, logits)


def test_second_derivative_of_the_reference_with_masked_classes(device: torch.device) -> None:
    batch = cases.make(DOUBLE)
    masked = torch.zeros(4, dtype=torch.bool, device=device)
    masked[1] = True
    logits, labels = batch.to(device)

    def loss(z: Tensor) -> Tensor:
        return pair_kl_hinge_loss(z.masked_fill(masked, -torch.inf), labels, impl="reference")

    assert torch.autograd.gradgradcheck(loss, logits)


# ---- autocast ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("autograd")
@reductions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, reduction: str, device: torch.device) -> None:
    """Like other losses: in float32 of what comes in."""
    logits, labels = cases.make(BATCH._replace(dtype=dtype)).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        loss = pair_kl_hinge_loss(logits, labels, reduction=reduction)
    upstream = torch.randn_like(loss)
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    alike = logits.detach().float().requires_grad_()
    expected = pair_kl_hinge_loss(alike, labels, reduction=reduction)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert grad.dtype == dtype
    (wanted,) = torch.autograd.grad(expected, alike, upstream)
    assert torch.equal(grad, wanted.to(dtype))


@pytest.mark.usefixtures("autograd")
def test_autocast_keeps_float64(device: torch.device) -> None:
    batch = cases.make(DOUBLE)
    logits, labels = batch.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        loss = pair_kl_hinge_loss(logits, labels, margin=batch.margin)
    assert loss.dtype == torch.float64
    assert_close(loss, batch.truth.loss("mean"), 1e-12)


@pytest.mark.usefixtures("autograd")
def test_autocast_behind_a_layer(device: torch.device) -> None:
    """The layer computes in bfloat16, the loss in float32; the weight's gradient is float32."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 10).to(device)
    x, labels = torch.randn(32, 6, device=device), torch.arange(32, device=device) % 4
    with torch.autocast(device.type, torch.bfloat16):
        logits = layer(x)
        assert logits.dtype == torch.bfloat16
        loss = pair_kl_hinge_loss(logits, labels)
    loss.backward()
    expected = truth.evaluate(logits.detach().double().cpu().numpy(), labels.cpu().numpy(), 2.0)
    assert_close(loss, expected.loss("mean"), 1e-6)
    weight_grad = expected.grad("both", "mean").T @ x.double().cpu().numpy()
    assert_close(layer.weight.grad, weight_grad, 2e-2)


# ---- Around a training step --------------------------------------------------------------------


@pytest.mark.usefixtures("autograd")
@reductions
def test_activation_checkpointing(reduction: str, device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)

    def loss(z: Tensor) -> Tensor:
        return pair_kl_hinge_loss(z * 2, labels, reduction=reduction).sum()

    (expected,) = torch.autograd.grad(loss(logits), logits)
    for use_reentrant in (False, True):
        logits.grad = None
        checkpoint(loss, logits, use_reentrant=use_reentrant).backward()
        assert torch.equal(logits.grad, expected)


@pytest.mark.usefixtures("autograd")
@reductions
def test_saved_tensors_may_be_moved(reduction: str, device: torch.device) -> None:
    """save_on_cpu and the like."""
    logits, labels = cases.make(BATCH).to(device)
    (expected,) = torch.autograd.grad(
        pair_kl_hinge_loss(logits, labels, reduction=reduction).sum(), logits
    )
    with torch.autograd.graph.save_on_cpu():
        loss = pair_kl_hinge_loss(logits, labels, reduction=reduction)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.equal(grad, expected)


@pytest.mark.usefixtures("autograd")
@reductions
def test_logits_changed_before_the_backward(reduction: str, device: torch.device) -> None:
    """An error, never the gradient at the new values."""
    leaf, labels = cases.make(BATCH).to(device)
    logits = leaf * 2
    loss = pair_kl_hinge_loss(logits, labels, reduction=reduction).sum()
    logits.detach().mul_(5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.usefixtures("autograd")
def test_parameters_and_subclasses_as_logits(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    expected = pair_kl_hinge_loss(logits, labels)

    class Subclass(torch.Tensor):
        pass

    for same in (torch.nn.Parameter(logits.detach().clone()), logits.as_subclass(Subclass)):
        assert torch.equal(torch.Tensor(pair_kl_hinge_loss(same, labels)), expected)


@pytest.mark.usefixtures("autograd")
def test_training_step_with_a_copied_model(device: torch.device) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).to(device)
    x, labels = torch.randn(20, 4, device=device), torch.arange(20, device=device) % 2
    losses = []
    for candidate in (model, copy.deepcopy(model)):
        optimizer = torch.optim.SGD(candidate.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            loss = pair_kl_hinge_loss(candidate(x), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:5] == losses[5:]
    assert losses[4] < losses[0]
