"""The precisions of the tensor cores: as accurate as docs/cuda.md says, and not more so, which is
how a kernel of another one would show."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import forms, truth
from tests.cuda_emulation.emulation import GRADIENTS, PRECISIONS, Kernels, Result
from tests.cuda_emulation.test_forms import arguments, check_grads, random_upstream
from tests.cuda_emulation.test_tensor_products import clusters
from tests.forms import Form
from tests.native_build import SANITIZE
from tests.tolerances import assert_close
from tests.truth_forms import FormTruth

REDUCED = [name for name in PRECISIONS if name != "fp32"]
precisions = pytest.mark.parametrize("precision", PRECISIONS)
reduced = pytest.mark.parametrize("precision", REDUCED)
not_of_memory = pytest.mark.skipif(SANITIZE, reason="slow, and touches no other memory")


@pytest.fixture
def tensor(kernels: Kernels) -> Kernels:
    return Kernels(kernels.library, tiled=True, arithmetic="tensor")


# ---- accuracy -----------------------------------------------------------------------------------


class Errors(NamedTuple):
    """Relative: of the loss for a margin of 2; of the gradient (Frobenius) for a margin that no
    divergence is near, and for one in the middle of them. There, which pairs are active is decided
    by the last digits of some: the share of those that are on the wrong side."""

    loss: float
    grad: float
    grad_at_median: float
    flips: float


# As in docs/cuda.md: of N = 130, K = 34, and of the sizes that it names.
BOUNDS = {
    "uniform": {
        "fp32": Errors(5e-7, 2e-7, 3e-3, 2e-4),
        "tf32x3": Errors(5e-7, 2e-7, 3e-3, 2e-4),
        "bf16x3": Errors(7e-7, 6e-6, 3e-3, 2e-4),
        "tf32": Errors(2e-5, 6e-6, 1e-2, 1e-3),
    },
    "normal": {
        "fp32": Errors(2e-7, 2e-7, 2e-7, 0),
        "tf32x3": Errors(2e-7, 2e-7, 2e-7, 0),
        "bf16x3": Errors(3e-7, 3e-6, 4e-3, 2e-4),
        "tf32": Errors(3e-5, 3e-6, 7e-3, 5e-4),
    },
    "times 3": {
        "fp32": Errors(5e-6, 2e-7, 2e-7, 0),
        "tf32x3": Errors(5e-6, 2e-7, 2e-7, 0),
        "bf16x3": Errors(5e-5, 2e-6, 2e-3, 2e-5),
        "tf32": Errors(5e-3, 2e-6, 1e-2, 4e-4),
    },
    "times 100": {
        "fp32": Errors(1e-7, 2e-6, 4e-3, 2e-4),
        "tf32x3": Errors(1e-7, 2e-6, 4e-3, 2e-4),
        "bf16x3": Errors(3e-7, 1e-5, 2e-3, 2e-4),
        "tf32": Errors(2e-5, 1e-5, 2e-2, 6e-4),
    },
    "clusters": {
        "fp32": Errors(2e-6, 1e-6, 4e-3, 2e-4),
        "tf32x3": Errors(2e-6, 1e-6, 4e-3, 2e-4),
        "bf16x3": Errors(3e-6, 3e-5, 3e-2, 1e-3),
        "tf32": Errors(2e-4, 3e-5, 1e-1, 2e-2),
    },
}


def normal(rows: int, columns: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return scale * torch.randn(rows, columns, generator=generator)


def measure(
    kernels: Kernels, logits: Tensor, labels: Tensor, precision: str, clear: float | None
) -> Errors:
    """clear: a margin that no divergence is near; None: one beyond all of them."""
    exact = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0)
    near = exact.divergence[exact.dissimilar]

    def of_loss(margin: float) -> float:
        expected = exact.with_margin(margin).loss("mean")
        found = kernels.forward(
            logits, labels, margin=margin, precision=precision, with_grad=False
        ).loss
        return float(abs(found.double() - expected) / expected)

    def of_grad(margin: float) -> float:
        expected = exact.with_margin(margin).grad("both", "mean")
        found = kernels.forward(logits, labels, margin=margin, precision=precision).grad
        return float(np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected))

    if near.size == 0:
        return Errors(of_loss(2.0), of_grad(2.0), 0.0, 0.0)
    median = float(np.median(near))
    active = kernels.active(logits, labels, margin=median, precision=precision).numpy()
    flips = (active != exact.with_margin(median).active)[exact.dissimilar].mean()
    return Errors(of_loss(2.0), of_grad(clear or 1.1 * near.max()), of_grad(median), float(flips))


def worst(kernels: Kernels, kind: str, precision: str, rows: int, columns: int) -> Errors:
    """Over similar, mixed and dissimilar pairs."""
    mixed, one_kind, clear = torch.arange(rows) % 8, [], None
    if kind == "clusters":
        logits, clear = clusters(mixed, columns), 2.0
    else:
        scale = {"uniform": 0.001, "normal": 1.0, "times 3": 3.0, "times 100": 100.0}[kind]
        logits = normal(rows, columns, scale)
        one_kind = [torch.zeros(rows, dtype=torch.int64), torch.arange(rows)]
    found = [measure(kernels, logits, labels, precision, clear) for labels in (mixed, *one_kind)]
    return Errors(*(max(of_labels) for of_labels in zip(*found, strict=True)))


@not_of_memory
@precisions
@pytest.mark.parametrize("kind", BOUNDS)
def test_errors(tensor: Kernels, kind: str, precision: str) -> None:
    found = worst(tensor, kind, precision, 130, 34)
    print(f"{kind}, {precision}: " + ", ".join(f"{error:.1e}" for error in found))
    for name, error, bound in zip(Errors._fields, found, BOUNDS[kind][precision], strict=True):
        assert error <= bound, name
    # Two parts in the gradient's sums, not three.
    assert (found.grad > 1e-6) == (precision in ("bf16x3", "tf32"))


@not_of_memory
@pytest.mark.parametrize("columns", [2, 5, 10])
@pytest.mark.parametrize("kind", ["uniform", "normal", "times 3", "times 100"])
def test_errors_of_few_classes(tensor: Kernels, kind: str, columns: int) -> None:
    """Most of their only slice is padding."""
    found = worst(tensor, kind, "fp32", 130, columns)
    bound = BOUNDS[kind]["fp32"]
    assert found.loss <= bound.loss
    assert found.grad <= bound.grad


@not_of_memory
def test_each_is_less_accurate_than_the_one_before(tensor: Kernels) -> None:
    """Rows of two values, see test_tensor_divergences.py: what is missing does not average out."""
    values = torch.empty(256, 1).uniform_(-2, 2, generator=torch.Generator().manual_seed(0))
    halves = torch.arange(16) < 8
    logits = torch.where(halves == (torch.arange(256) % 2 == 0)[:, None], values, 0.0)
    labels = torch.arange(256) // 2
    exact = truth.evaluate(logits.double().numpy(), labels.numpy(), 0.0).loss("none")
    large = exact > 0.1

    def error(precision: str) -> float:
        loss = tensor.forward(
            logits, labels, margin=0.0, reduction="none", with_grad=False, precision=precision
        ).loss
        return float((np.abs(loss.numpy() - exact) / exact)[large].mean())

    errors = {precision: error(precision) for precision in PRECISIONS}
    print(", ".join(f"{name} {value:.1e}" for name, value in errors.items()))
    assert 1.1 * errors["fp32"] < errors["tf32x3"] < 2 * errors["fp32"]
    assert 2e-6 < errors["bf16x3"] < 1e-5
    assert 1e-4 < errors["tf32"] < 1e-3


# ---- forms --------------------------------------------------------------------------------------

# Relative to the largest element: of the loss, of the gradient. The margin is beyond all
# divergences, so that none is on its wrong side.
TOLERANCES = {"tf32x3": (1e-6, 1e-6), "bf16x3": (1e-5, 3e-5), "tf32": (1e-3, 3e-5)}
FORMS = [
    Form(70, 34, torch.float32, ignored="some"),
    Form(65, 40, torch.float16, weighted="balance"),
    Form(70, 17, torch.float32, levels=2, weighted="level kind sample"),
    Form(66, 33, torch.float32, ref_rows=131, weighted="sample ref"),
    Form(70, 24, torch.float32, similarity="int8", symmetric=False),
    Form(33, 300, torch.float32, levels=3),  # the classes in parts
]
if SANITIZE:
    FORMS = FORMS[2:4]


def make(form: Form) -> tuple[FormTruth, dict[str, Any]]:
    """The truth, and the arguments."""
    batch = forms.make(form)
    divergence = batch.truth.dissimilar_divergence
    exact = batch.truth.with_margin(1.1 * divergence.max())
    return exact, {**arguments(batch), "margin": exact.margin}


def all_results(kernels: Kernels, form: Form, **options: Any) -> dict[str, Result]:
    _, given = make(form)
    options["with_ref_grad"] = form.ref_rows > 0
    upstream = random_upstream(form.rows)
    results = {}
    for gradient in GRADIENTS:
        for reduction in ("mean", "none"):
            results[f"{gradient}, {reduction}"] = kernels.forward(
                **given, gradient=gradient, reduction=reduction, **options
            )
        results[f"{gradient}, backward"] = kernels.backward(
            upstream, **given, gradient=gradient, **options
        )
    return results


@reduced
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forms(tensor: Kernels, form: Form, precision: str) -> None:
    exact, _ = make(form)
    of_loss, of_grad = TOLERANCES[precision]
    of_half = of_grad + (2**-11 if form.dtype == torch.float16 else 0)
    upstream = random_upstream(form.rows).double().numpy()
    full = all_results(tensor, form)
    for what, result in all_results(tensor, form, precision=precision).items():
        gradient, reduction = what.split(", ")
        if reduction == "backward":
            check_grads(result, exact.grads(gradient, "none", upstream), of_half, what)
        else:
            assert_close(result.loss, exact.loss(reduction), of_loss, what)
        if reduction == "mean":
            check_grads(result, exact.grads(gradient, "mean"), of_grad, what)
        # Not the same kernels: the sums of the gradient are fp32's for tf32x3.
        if reduction == "none":
            assert not torch.equal(result.loss, full[what].loss)
        elif form.dtype != torch.float16:
            assert torch.equal(result.grad, full[what].grad) == (precision == "tf32x3")


@not_of_memory
@reduced
@pytest.mark.parametrize(("rows", "columns"), [(63, 16), (129, 65), (65, 72), (200, 130)])
def test_shapes(tensor: Kernels, rows: int, columns: int, precision: str) -> None:
    """Odd on purpose: slices have 8 or 16 classes."""
    form = Form(rows, columns, torch.float32)
    exact, given = make(form)
    of_loss, of_grad = TOLERANCES[precision]
    result = tensor.forward(**given, precision=precision, product_splits=2)
    assert_close(result.loss, exact.loss("mean"), of_loss)
    check_grads(result, exact.grads("both", "mean"), of_grad, precision)


@not_of_memory
@reduced
def test_same_bits_in_any_order(tensor: Kernels, precision: str) -> None:
    """And by any number of blocks; in chunks of rows, which add in another order, nearly so."""
    _, given = make(Form(130, 34, torch.float32, weighted="sample"))
    given |= {"precision": precision, "product_splits": 1}
    first, *others = (tensor.forward(**given, seed=seed) for seed in range(3))
    for other in (*others, tensor.forward(**given, pair_blocks=2)):
        assert torch.equal(other.grad, first.grad)
    in_chunks = tensor.forward(**given, chunk_rows=128)
    assert_close(in_chunks.grad, first.grad.double().numpy(), 1e-6)


@reduced
def test_rows_that_are_not_bounded(tensor: Kernels, precision: str) -> None:
    """Their tiles are computed in FMA, whatever the precision."""
    labels = torch.arange(200) % 7
    logits = normal(200, 34)
    labels[[3, 140]] = torch.tensor([7, 8])  # no similar pair is infinitely far apart
    logits[[3, 140], 5] = -torch.inf
    exact = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0)
    exact = exact.with_margin(1.1 * exact.divergence[np.isfinite(exact.divergence)].max())
    of_loss, of_grad = TOLERANCES[precision]
    result = tensor.forward(logits, labels, margin=exact.margin, precision=precision)
    assert_close(result.loss, exact.loss("mean"), of_loss)
    assert_close(result.grad, exact.grad("both", "mean"), of_grad)


# ---- more accurate than asked for ---------------------------------------------------------------


@reduced
@pytest.mark.parametrize("way", ["small", "fma", "float64"])
def test_others_compute_as_accurately_as_they_can(
    kernels: Kernels, way: str, precision: str
) -> None:
    each = kernels if way == "small" else Kernels(kernels.library, True, "fma")
    form = Form(40, 20, torch.float64 if way == "float64" else torch.float32)
    full, other = (all_results(each, form, precision=name) for name in ("fp32", precision))
    for what, result in full.items():
        assert torch.equal(result.loss, other[what].loss)
        if result.grad is not None:
            assert torch.equal(result.grad, other[what].grad)
