"""Batches in several chunks of rows: a chunk also adds up the sums of the rows behind it, from the
mirror images of its own tiles. Held against the float64 truth and against one chunk, on the
emulation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests import forms, truth
from tests.cuda_emulation.emulation import GRADIENTS, REDUCTIONS, Kernels, Result
from tests.cuda_emulation.test_forms import arguments, check_grads, random_upstream
from tests.forms import Form
from tests.native_build import SANITIZE
from tests.tolerances import TOLERANCES, assert_close


class Way(NamedTuple):
    arithmetic: str
    chunk_rows: int
    certified: bool = False

    def kernels(self, library: Kernels) -> Kernels:
        return Kernels(
            library.library, tiled=True, arithmetic=self.arithmetic, certified=self.certified
        )


WAYS = [Way("fma", 64, certified=True)]
if not SANITIZE:  # under which the emulated tensor cores are slow
    WAYS += [Way("fma", 64), Way("tensor", 128), Way("tensor", 128, certified=True)]
ways = pytest.mark.parametrize("way", WAYS, ids=str)

FORMS = (
    Form(330, 18, torch.float32),
    Form(257, 18, torch.float32, levels=3, ignored="some", weighted="level sample"),
    Form(300, 10, torch.float32, similarity="int8", symmetric=False, weighted="balance"),
    Form(270, 18, torch.float32, ignored="some", masked=True),  # rows for the tensor cores, and not
    Form(200, 18, torch.float32, ref_rows=150, weighted="kind ref"),
)
each = pytest.mark.parametrize("form", FORMS[1:3] if SANITIZE else FORMS, ids=str)


def results(kernels: Kernels, form: Form, **options: Any) -> list[Result]:
    given, upstream = arguments(forms.make(form)), random_upstream(form.rows)
    options["with_ref_grad"] = form.ref_rows > 0
    found = []
    for gradient in GRADIENTS:
        options["gradient"] = gradient
        found += [kernels.forward(**given, reduction=name, **options) for name in REDUCTIONS]
        found.append(kernels.backward(upstream, **given, **options))
    return found


@each
@ways
def test_equals_the_truth(kernels: Kernels, way: Way, form: Form) -> None:
    exact, tolerance = forms.make(form).truth, TOLERANCES[form.dtype]
    upstream = random_upstream(form.rows).double().numpy()
    found = iter(results(way.kernels(kernels), form, chunk_rows=way.chunk_rows))
    for gradient in GRADIENTS:
        for reduction in REDUCTIONS:
            what, result = f"{gradient}, {reduction}", next(found)
            assert_close(result.loss, exact.loss(reduction), tolerance.loss, what)
            stats = exact.stats(reduction)
            assert_close(result.stats.reshape(stats.shape), stats, tolerance.loss, what)
            if reduction != "none":
                check_grads(result, exact.grads(gradient, reduction), tolerance.grad, what)
        grads = exact.grads(gradient, "none", upstream)
        check_grads(next(found), grads, tolerance.grad, f"{gradient}, backward")


@each
@ways
def test_same_bits_in_any_order_of_threads_and_blocks(
    kernels: Kernels, way: Way, form: Form
) -> None:
    ours, given = way.kernels(kernels), arguments(forms.make(form))
    first, other = (
        ours.forward(**given, chunk_rows=way.chunk_rows, pair_blocks=5, seed=seed)
        for seed in (0, 1)
    )
    for tensor, expected in zip(other[:3], first[:3], strict=True):
        assert torch.equal(tensor, expected)


@ways
def test_no_pair_is_left_out_or_counted_twice(kernels: Kernels, way: Way) -> None:
    """The statistics have the number of active pairs."""
    form = Form(250, 18, torch.float32, levels=2)
    ours, given = way.kernels(kernels), arguments(forms.make(form))
    whole = ours.forward(**given)
    in_chunks = ours.forward(**given, chunk_rows=way.chunk_rows)
    assert torch.equal(in_chunks.stats[:3], whole.stats[:3])
    assert_close(in_chunks.stats, whole.stats.numpy(), 1e-6)
    assert_close(in_chunks.loss, whole.loss.double().numpy(), 1e-6)
    assert_close(in_chunks.grad, whole.grad.double().numpy(), 1e-6)


@ways
def test_one_unbounded_row_behind_the_first_chunk(kernels: Kernels, way: Way) -> None:
    """Its tiles are those of the FMA kernels, all others those of the tensor cores, if these are
    used: in the chunk of the row, and in that before."""
    logits = torch.randn(330, 18, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(330) % 7
    logits[200, 3] = -torch.inf
    labels[200] = 7  # without a similar row, of which the loss would be infinite
    exact = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0)
    dissimilar = exact.divergence[exact.dissimilar]
    exact = exact.with_margin(truth.margin_in_a_gap(dissimilar[np.isfinite(dissimilar)], 2.0))
    result = way.kernels(kernels).forward(
        logits, labels, margin=exact.margin, chunk_rows=way.chunk_rows
    )
    assert_close(result.loss, exact.loss("mean"), 1e-6)
    assert_close(result.grad, exact.grad("both", "mean"), 2e-6)


def test_rows_behind_without_an_open_tile(kernels: Kernels) -> None:
    """Two groups of rows, far from each other, so that the first chunk is of no concern to the rows
    behind it but for their place in its sums."""
    height = 30.0 * torch.eye(18)[[0] * 128 + [5] * 128]
    logits = height + torch.randn(256, 18, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(256) // 128
    for arithmetic in ("fma",) if SANITIZE else ("fma", "tensor"):
        ours = Way(arithmetic, 128, certified=True).kernels(kernels)
        whole = ours.forward(logits, labels)
        in_chunks = ours.forward(logits, labels, chunk_rows=128)
        assert_close(in_chunks.loss, whole.loss.double().numpy(), 1e-6)
        assert_close(in_chunks.grad, whole.grad.double().numpy(), 1e-6)
