"""The gradient against the float64 truth, over the grid of cases.py; then ways to ask for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pairloss import pair_kl_hinge_loss
from tests import cases, truth
from tests.cases import Case
from tests.tolerances import DTYPES, TOLERANCES, assert_close, relative_error

pytestmark = pytest.mark.usefixtures("one_thread")
GRADIENTS = ("both", "second")
REDUCTIONS = ("mean", "sum", "none")
# Where the reference's (N, N, K) tensors are small.
SMALL = [case for case in cases.GRID if case.rows**2 * case.columns < 2e5]


def random_upstream(case: Case, reduction: str) -> torch.Tensor:
    """Never 1: a number, or one for each row of either sign and some of them 0."""
    dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(case.rows + case.columns)
    if reduction != "none":
        return torch.randn((), dtype=dtype, generator=generator) * 3
    upstream = torch.randn(case.rows, dtype=dtype, generator=generator)
    upstream[::3] = 0.0
    return upstream


def check_gradients(case: Case, device: torch.device, gradient: str, impl: str) -> None:
    batch = cases.make(case)
    for reduction in REDUCTIONS:
        logits, labels = batch.to(device)
        loss = pair_kl_hinge_loss(
            logits,
            labels,
            margin=batch.margin,
            gradient=gradient,
            reduction=reduction,
            impl=impl,
        )
        upstream = random_upstream(case, reduction)
        (grad,) = torch.autograd.grad(loss, logits, upstream.to(device))
        assert grad.dtype == case.dtype
        expected = batch.truth.grad(gradient, reduction, upstream.double().numpy())
        # A single class has P = 1 and a gradient of 0, up to the rounding of a sum over rows.
        scale = max(case.rows, 1) if case.columns == 1 else 1e-30
        assert_close(grad, expected, TOLERANCES[case.dtype].grad, reduction, scale)
        ignored = labels == cases.IGNORE_INDEX
        assert (grad[ignored] == 0).all()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("case", cases.GRID, ids=str)
def test_fused_equals_the_truth(case: Case, gradient: str, device: torch.device) -> None:
    check_gradients(case, device, gradient, "fused")


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_reference_equals_the_truth(case: Case, gradient: str, device: torch.device) -> None:
    check_gradients(case, device, gradient, "reference")


BATCH = Case(65, 34, "few", 2.0, torch.float32, "contiguous", "some")


@pytest.fixture
def batch() -> cases.Batch:
    return cases.make(BATCH)


def loss_of(
    batch: cases.Batch, device: torch.device, **options: object
) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels = batch.to(device)
    return pair_kl_hinge_loss(logits, labels, margin=batch.margin, **options), logits


@pytest.mark.usefixtures("autograd")
@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_backward_twice_and_accumulation(
    batch: cases.Batch, reduction: str, impl: str, device: torch.device
) -> None:
    loss, logits = loss_of(batch, device, reduction=reduction, impl=impl)
    first, second = (random_upstream(BATCH, reduction).to(device) * factor for factor in (1, -0.3))
    untouched = first.clone()
    loss.backward(first, retain_graph=True)
    assert torch.equal(first, untouched)
    once = logits.grad.clone()
    loss.backward(second)
    upstream = (first + second).double().cpu().numpy()
    expected = batch.truth.grad("both", reduction, upstream)
    assert_close(logits.grad, expected, TOLERANCES[BATCH.dtype].grad)
    expected = batch.truth.grad("both", reduction, first.double().cpu().numpy())
    assert_close(once, expected, TOLERANCES[BATCH.dtype].grad)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("height", [8.0, 14.0, 20.0])
def test_converged_clusters(height: float, gradient: str, device: torch.device) -> None:
    """Nearly one-hot rows: what is left of their gradient is a difference of large numbers."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(320) % 8
    logits = torch.randn(320, 17, generator=generator)
    logits[torch.arange(320), labels] += height
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0).grad(gradient, "mean")
    logits = logits.to(device).requires_grad_()
    pair_kl_hinge_loss(logits, labels.to(device), gradient=gradient).backward()
    error = np.linalg.norm(logits.grad.double().cpu().numpy() - expected)
    assert error <= 2e-6 * np.linalg.norm(expected)


@pytest.mark.usefixtures("autograd")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_plain_backward(batch: cases.Batch, reduction: str, device: torch.device) -> None:
    """With an upstream gradient of 1 the saved gradient goes out as it is, but only once."""
    loss, logits = loss_of(batch, device, reduction=reduction)
    loss.backward(retain_graph=True)
    tolerance = TOLERANCES[BATCH.dtype].grad
    assert_close(logits.grad, batch.truth.grad("both", reduction), tolerance)
    logits.grad.mul_(2)
    loss.backward(retain_graph=True)
    assert_close(logits.grad, 3 * batch.truth.grad("both", reduction), tolerance)
    logits.grad = None
    (loss + loss_of(batch, device, reduction=reduction)[0]).backward(retain_graph=True)
    assert_close(logits.grad, batch.truth.grad("both", reduction), tolerance)
    one, three = torch.autograd.grad(
        loss, logits, torch.tensor([1.0, 3.0], device=device), is_grads_batched=True
    )[0]
    assert_close(one, batch.truth.grad("both", reduction), tolerance)
    assert_close(three, 3 * batch.truth.grad("both", reduction), tolerance)


@pytest.mark.usefixtures("autograd")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_leaf_in_two_losses(batch: cases.Batch, reduction: str, device: torch.device) -> None:
    """The gradient that the forward saved is not handed out to be added to."""
    loss, logits = loss_of(batch, device, reduction=reduction)
    upstream = random_upstream(BATCH, reduction).to(device)
    total = (loss * upstream).sum() + (logits * 3).sum() + (loss * upstream * 2).sum()
    total.backward()
    expected = batch.truth.grad("both", reduction, 3 * upstream.double().cpu().numpy()) + 3
    assert_close(logits.grad, expected, TOLERANCES[BATCH.dtype].grad)


@pytest.mark.usefixtures("autograd")
def test_gradient_reaches_what_is_before_the_logits(
    batch: cases.Batch, device: torch.device
) -> None:
    logits, labels = batch.to(device)
    weight = torch.full((), 0.7, device=device, requires_grad=True)
    loss = pair_kl_hinge_loss(logits.detach() / 0.7 * weight, labels, margin=batch.margin)
    loss.backward()
    expected = (batch.truth.grad("both", "mean") * logits.detach().cpu().numpy()).sum() / 0.7
    assert_close(weight.grad, expected, 1e-4)


@pytest.mark.usefixtures("autograd")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "constant"])
def test_without_a_gradient(
    batch: cases.Batch, mode: str, reduction: str, device: torch.device
) -> None:
    logits, labels = batch.to(device)
    if mode == "constant":
        logits = logits.detach()
        loss = pair_kl_hinge_loss(logits, labels, margin=batch.margin, reduction=reduction)
    else:
        with getattr(torch, mode)():
            loss = pair_kl_hinge_loss(logits, labels, margin=batch.margin, reduction=reduction)
    assert not loss.requires_grad
    assert loss.is_inference() == (mode == "inference_mode")
    assert_close(loss, batch.truth.loss(reduction), TOLERANCES[BATCH.dtype].loss)


@pytest.mark.usefixtures("autograd")
def test_inference_tensors_as_input(batch: cases.Batch, device: torch.device) -> None:
    with torch.inference_mode():
        logits, labels = (x.clone() for x in batch.to(device))
    loss = pair_kl_hinge_loss(logits, labels, margin=batch.margin)
    assert_close(loss, batch.truth.loss("mean"), TOLERANCES[BATCH.dtype].loss)


@pytest.mark.usefixtures("autograd")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_scaling_keeps_small_gradients(dtype: torch.dtype, device: torch.device) -> None:
    """A loss scaler's factor comes in before the gradient is rounded to half precision."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(129, 500, generator=generator) * 1e-3).to(dtype)
    labels = torch.zeros(129, dtype=torch.int64)
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0).grad("both", "mean")
    assert np.median(np.abs(expected)) < 2**-24, "float16 can hold these: choose smaller ones"

    factor = 2.0**16
    logits = logits.to(device).requires_grad_()
    (pair_kl_hinge_loss(logits, labels.to(device)) * factor).backward()
    # The reference's own float32 rounding of P is 1e-3 of such gradients.
    assert_close(logits.grad, expected * factor, TOLERANCES[dtype].grad + 1e-3)
    assert (logits.grad != 0).double().mean() > 0.99


# The formula as PyTorch users write it, wholly in the dtype of the logits.
def plain_pytorch(logits: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    log_p = torch.log_softmax(logits, 1)
    p = log_p.exp()
    divergence = (p * log_p).sum(1, keepdim=True) - p @ log_p.t()
    similar = labels[:, None] == labels
    terms = torch.where(similar, divergence, (margin - divergence).clamp(min=0))
    off_diagonal = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return (terms * off_diagonal).sum() * (2 / len(labels) / (len(labels) - 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [10, 500])
def test_no_worse_than_plain_pytorch_in_the_same_dtype(
    dtype: torch.dtype, columns: int, device: torch.device
) -> None:
    batch = cases.make(Case(64, columns, "few", 2.0, dtype))
    errors = {}
    for name, function in (("ours", pair_kl_hinge_loss), ("plain", plain_pytorch)):
        logits, labels = batch.to(device)
        loss = function(logits, labels, margin=batch.margin)
        loss.backward()
        errors[name] = (
            relative_error(loss, batch.truth.loss("mean")),
            relative_error(logits.grad, batch.truth.grad("both", "mean")),
        )
    for ours, plain in zip(errors["ours"], errors["plain"], strict=True):
        assert ours <= plain + 4 * torch.finfo(dtype).eps, errors


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_gradcheck(seed: int, reduction: str, layout: str, device: torch.device) -> None:
    # 11 rows, of which some are ignored: another seed for another number of columns.
    batch = cases.make(Case(11, 3 + seed, "two", 2.0, torch.float64, layout, "some"))
    logits, labels = batch.to(device)
    assert 0 < batch.truth.active.sum() < batch.truth.dissimilar.sum()

    def loss(z: torch.Tensor) -> torch.Tensor:
        return pair_kl_hinge_loss(z, labels, margin=batch.margin, reduction=reduction)

    assert torch.autograd.gradcheck(loss, logits)


def l2c_loss(logits: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """As L2C has it: all N^2 pairs, KL from a detached first argument, both ways, averaged.

    Without its eps of 1e-7 inside the logarithms.
    """
    n = len(labels)
    prob = torch.softmax(logits, 1)
    first, second = prob.repeat(n, 1), prob.repeat_interleave(n, 0)  # PairEnum
    similar = labels.repeat(n) == labels.repeat_interleave(n)

    def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        p = p.detach()
        return (p * (p.log() - q.log())).sum(1)

    both_ways = torch.zeros((), dtype=logits.dtype, device=logits.device)
    for divergence in (kl(first, second), kl(second, first)):
        hinge = torch.relu(margin - divergence)
        both_ways = both_ways + torch.where(similar, divergence, hinge).mean()
    return both_ways / 2


def test_l2c(device: torch.device) -> None:
    n = 31
    batch = cases.make(Case(n, 10, "few", 2.0, torch.float64))
    logits, labels = batch.to(device)
    l2c = l2c_loss(logits, labels, batch.margin)
    (l2c_grad,) = torch.autograd.grad(l2c * 1.7, logits)
    ours = pair_kl_hinge_loss(logits, labels, margin=batch.margin, gradient="second")
    (grad,) = torch.autograd.grad(ours * 1.7, logits)
    factor = (n - 1) / (2 * n)
    torch.testing.assert_close(ours * factor, l2c, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad * factor, l2c_grad, rtol=1e-10, atol=1e-15)
