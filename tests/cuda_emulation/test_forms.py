"""Levels, reference sets, similarity matrices and weights in the CUDA kernels' own source, on the
emulation, against the float64 truth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pairloss._arguments import check_inputs
from tests import forms
from tests.cuda_emulation.emulation import (
    GRADIENTS,
    REDUCTIONS,
    Kernels,
    Result,
    accumulation_dtype,
)
from tests.forms import Form
from tests.native_build import SANITIZE
from tests.tolerances import TOLERANCES, assert_close, relative_error

# Without a pair of rows there is nothing to launch: that is the operator's own business. Sanitizers
# are slow: for them, some of each kind.
FORMS = (*forms.SINGLE[::2], *forms.EDGES[::3], *forms.COMBINED[:4]) if SANITIZE else forms.GRID
GRID = [form for form in FORMS if form.rows > 0 and form.ref_rows != 0 and not form.clusters]
EACH = (
    Form(70, 10, torch.float32, levels=3, ignored="some", weighted="level sample"),
    Form(70, 10, torch.float32, ref_rows=67, levels=2, weighted="kind sample ref balance"),
    Form(70, 10, torch.float32, similarity="int8", symmetric=False, weighted="balance"),
)
each = pytest.mark.parametrize("form", EACH, ids=str)


def arguments(batch: forms.Batch) -> dict[str, Any]:
    """As the operators take them."""
    options = dict(batch.options)
    inputs = check_inputs(**batch.tensors, level_weights=options.pop("level_weights", None))
    options["balance"] = "balance" in options
    return {**{name: x for name, x in inputs._asdict().items() if x is not None}, **options}


def random_upstream(rows: int) -> Tensor:
    return 3 * torch.randn(rows, generator=torch.Generator().manual_seed(11))


def check_grads(result: Result, expected: tuple[Any, Any], tolerance: float, what: str) -> None:
    # Where one is tiny beside the other side's: compare with the larger of the two. With one class
    # all gradients are 0: compare with the margin's order instead.
    one_class = expected[0].shape[1] == 1
    scale = max(np.abs(of_side).max(initial=float(one_class) or 1e-30) for of_side in expected)
    for name, grad, exact in zip(("grad", "ref_grad"), result[2:], expected, strict=True):
        if grad is not None:
            assert_close(grad, exact, tolerance, f"{name}, {what}", scale)


@pytest.mark.parametrize("form", GRID, ids=str)
def test_equals_the_truth(each_way: Kernels, form: Form) -> None:
    batch = forms.make(form)
    given = arguments(batch)
    upstream = random_upstream(form.rows)
    with_ref_grad = form.ref_rows > 0
    tolerance, full = TOLERANCES[form.dtype], TOLERANCES[accumulation_dtype(given["logits"])]
    for gradient in GRADIENTS:
        for reduction in REDUCTIONS:
            what = f"{gradient}, {reduction}"
            result = each_way.forward(
                **given, gradient=gradient, reduction=reduction, with_ref_grad=with_ref_grad
            )
            assert_close(result.loss, batch.truth.loss(reduction), tolerance.loss, what)
            exact = batch.truth.stats(reduction)
            stats = result.stats.numpy().reshape(exact.shape)
            np.testing.assert_array_equal(stats[:2], exact[:2], what)
            np.testing.assert_allclose(stats[2], exact[2], rtol=1e-12, err_msg=what)
            assert_close(stats[3:], exact[3:], tolerance.loss, what)
            if reduction != "none":
                check_grads(result, batch.truth.grads(gradient, reduction), full.grad, what)
        result = each_way.backward(
            upstream, **given, gradient=gradient, with_ref_grad=with_ref_grad
        )
        exact = batch.truth.grads(gradient, "none", upstream.double().numpy())
        check_grads(result, exact, tolerance.grad, f"{gradient}, backward")


@each
def test_same_bits_in_any_order_of_threads_and_blocks(each_way: Kernels, form: Form) -> None:
    """Tiled: in two chunks of rows."""
    batch = forms.make(form)
    given = arguments(batch)
    with_ref_grad = form.ref_rows > 0
    upstream = random_upstream(form.rows)

    def results(seed: int) -> list[Result]:
        options = {"with_ref_grad": with_ref_grad, "chunk_rows": 64 * each_way.tiled, "seed": seed}
        return [
            each_way.forward(**given, reduction="mean", **options),
            each_way.forward(**given, reduction="none", **options),
            each_way.backward(upstream, **given, **options),
        ]

    mean, none, backward = ascending = results(0)
    tolerance = TOLERANCES[form.dtype]
    assert_close(mean.loss, batch.truth.loss("mean"), tolerance.loss)
    assert_close(none.loss, batch.truth.loss("none"), tolerance.loss)
    assert_close(mean.stats[3:], batch.truth.stats("mean")[3:].reshape(mean.stats[3:].shape), 1e-5)
    check_grads(mean, batch.truth.grads("both", "mean"), tolerance.grad, "mean")
    exact = batch.truth.grads("both", "none", upstream.double().numpy())
    check_grads(backward, exact, tolerance.grad, "backward")
    for seed in (1, 2):
        for ours, first in zip(results(seed), ascending, strict=True):
            for tensor, expected in zip(ours, first, strict=True):
                assert tensor is expected is None or torch.equal(tensor, expected)


def test_only_what_is_asked_for(each_way: Kernels) -> None:
    form = Form(70, 10, torch.float32, ref_rows=67, levels=2)
    given = arguments(forms.make(form))
    upstream = random_upstream(form.rows)
    all_of_it = each_way.forward(**given, with_ref_grad=True)
    launches_of_all = each_way.launches
    value = each_way.forward(**given, with_grad=False)
    launches_of_value = each_way.launches
    assert torch.equal(value.loss, all_of_it.loss)
    assert torch.equal(value.stats, all_of_it.stats)
    of_batch = each_way.forward(**given)
    launches_of_batch = each_way.launches
    assert launches_of_value <= launches_of_batch < launches_of_all
    assert of_batch.ref_grad is None
    assert torch.equal(of_batch.grad, all_of_it.grad)
    of_reference = each_way.forward(**given, with_grad=False, with_ref_grad=True)
    assert of_reference.grad is None
    assert torch.equal(of_reference.ref_grad, all_of_it.ref_grad)
    both = each_way.backward(upstream, **given, with_ref_grad=True)
    one = each_way.backward(upstream, **given, with_grad=False, with_ref_grad=True)
    assert one.grad is None
    assert torch.equal(one.ref_grad, both.ref_grad)


@pytest.mark.parametrize(("rows", "columns"), [(16, 10), (129, 34), (65, 64)])
def test_small_batches_take_two_launches(kernels: Kernels, rows: int, columns: int) -> None:
    given = arguments(forms.make(Form(rows, columns, torch.float32, ref_rows=20)))
    kernels.forward(**given)
    assert kernels.launches == 2
    kernels.forward(**given, with_ref_grad=True)
    assert kernels.launches == 3
    kernels.backward(random_upstream(rows), **given)
    assert kernels.launches == 2


def test_more_levels_than_fit_into_one_launch(kernels: Kernels) -> None:
    batch = forms.make(Form(20, 4, levels=40, ignored="some", weighted="level"))
    result = kernels.forward(**arguments(batch))
    assert_close(result.loss, batch.truth.loss("mean"), 1e-12)
    assert_close(result.stats, batch.truth.stats("mean"), 1e-12)
    check_grads(result, batch.truth.grads("both", "mean"), 1e-12, "mean")


# ---- what takes no part -------------------------------------------------------------------------


def is_same(kernels: Kernels, ours: Tensor, expected: Tensor) -> bool:
    """To the bit, but for the tensor cores: they leave tiles with a row that is not finite to other
    kernels, which round otherwise."""
    if kernels.arithmetic == "tensor":
        return relative_error(ours, expected.numpy()) < 1e-6
    return torch.equal(ours, expected)


@each
@pytest.mark.parametrize("value", [torch.nan] if SANITIZE else [torch.nan, torch.inf])
def test_rows_without_a_pair_reach_nothing(each_way: Kernels, form: Form, value: float) -> None:
    given = arguments(forms.make(form))
    reference = "ref_logits" in given
    out = torch.zeros(form.rows, dtype=torch.bool)
    out[[3, 66, 69]] = True
    if "similarity" in given:
        given["similarity"] = given["similarity"].clone()
        given["similarity"][out] = 0
        given["similarity"][:, out] = 0
    else:
        given["labels"] = given["labels"].clone()
        given["labels"][out] = -100
    given["sample_weights"] = torch.rand(form.rows) + 0.5
    upstream = random_upstream(form.rows)
    dirty = {**given, "logits": given["logits"].clone()}
    dirty["sample_weights"] = given["sample_weights"].clone()
    dirty["logits"][out] = dirty["sample_weights"][out] = value
    dirty_upstream = torch.where(out, value, upstream)
    for gradient in GRADIENTS:
        options = {"gradient": gradient, "with_ref_grad": reference}
        clean = (
            each_way.forward(**given, **options),
            each_way.backward(upstream, **given, **options),
        )
        found = (
            each_way.forward(**dirty, **options),
            each_way.backward(dirty_upstream, **dirty, **options),
        )
        for ours, expected in zip(found, clean, strict=True):
            assert not ours.grad[out].any()
            for tensor, exact in zip(ours, expected, strict=True):
                assert tensor is exact is None or is_same(each_way, tensor, exact)


def test_no_partner_in_any_level_is_zero(each_way: Kernels) -> None:
    """Valid rows, NaN, whose only partners are ignored."""
    logits, ref_logits = torch.full((3, 5), torch.nan), torch.randn(2, 5)
    ignored = torch.full((2,), -100)
    labels = torch.tensor([1, 2, 3])
    given = {"labels": labels, "ref_logits": ref_logits, "ref_labels": ignored}
    result = each_way.forward(logits, **given, with_ref_grad=True)
    assert not any(tensor.any() for tensor in result)
    levels = torch.tensor([[1, -100], [-100, 2]])  # one valid row in each level
    result = each_way.forward(torch.full((2, 5), torch.nan), levels)
    assert not any(tensor.any() for tensor in result[:3])


# ---- what does ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_nan_reaches_its_partners_and_no_other_row(each_way: Kernels, gradient: str) -> None:
    rows, bad, partners = 70, 5, [0, 5, 68]
    similarity = torch.from_numpy(np.random.default_rng(0).integers(-1, 2, (rows, rows))).to(
        torch.int8
    )
    others = [row for row in range(rows) if row not in partners]
    similarity[bad, others] = similarity[others, bad] = 0
    similarity[bad, 0] = similarity[68, bad] = 1
    similarity[0, bad] = similarity[bad, 68] = 0
    logits = _random(rows, 4)
    options = {"similarity": similarity, "gradient": gradient}
    clean = each_way.backward(torch.ones(rows), logits, **options).grad
    clean_loss = each_way.forward(logits, reduction="none", **options).loss
    logits[bad] = torch.nan
    loss = each_way.forward(logits, reduction="none", **options).loss
    assert loss[partners].isnan().all()
    assert is_same(each_way, loss[others], clean_loss[others])
    grad = each_way.backward(torch.ones(rows), logits, **options).grad
    assert grad[bad].isnan().all()
    assert is_same(each_way, grad[others], clean[others])
    assert each_way.forward(logits, **options).loss.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinitely_far_from_the_reference(each_way: Kernels, dtype: torch.dtype) -> None:
    """One reference row lacks a class. Its similar rows have an infinite loss and no gradient."""
    logits, ref_logits = _random(9, 4).to(dtype), _random(6, 4).to(dtype)
    labels, ref_labels = torch.arange(9) % 3, torch.arange(6) % 3
    ref_logits[1, 2] = -torch.inf
    given = {"labels": labels, "ref_logits": ref_logits, "ref_labels": ref_labels}
    far = labels == 1
    loss = each_way.forward(logits, reduction="none", **given).loss
    assert loss[far].isposinf().all()
    assert loss[~far].isfinite().all()
    result = each_way.forward(logits, with_ref_grad=True, **given)
    assert result.loss.isposinf()
    assert result.grad[far].isnan().all()
    assert result.grad[~far].isfinite().all()
    assert result.ref_grad[1].isnan().all()
    assert result.ref_grad[ref_labels != 1].isfinite().all()


def _random(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return 1.4 * torch.randn(rows, columns, generator=generator)


def test_memory_is_linear_in_the_rows(kernels: Kernels) -> None:
    for rows, ref_rows, levels in [(128, 2**20, 1), (2**20, 64, 2), (50_000, 65_536, 6)]:
        bytes_needed = kernels.workspace_bytes(rows, 34, ref_rows, levels)
        # P and L, their planes, labels in order and what else certificates need, and a bounded
        # amount for a chunk of rows in each of the two passes.
        of_row = 8.7 * 34 + 12 * 48 + 48 + 8.5 * levels
        assert bytes_needed < of_row * (rows + ref_rows) + 2 * 190e6
