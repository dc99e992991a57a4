"""Divergences on tensor cores: as accurate as in FMA, also where less than all products of bfloat16
parts, or a worse reference row, would show; and the blocks' walk from tile to tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import truth
from tests.cuda_emulation.emulation import REDUCTIONS, Kernels
from tests.native_build import SANITIZE
from tests.tolerances import assert_close

not_of_memory = pytest.mark.skipif(SANITIZE, reason="slow, and touches no other memory")

PAIRS = {"similar": 1, "mixed": 5, "dissimilar": 130}  # classes of labels


@pytest.fixture
def tensor(kernels: Kernels) -> Kernels:
    return Kernels(kernels.library, tiled=True, arithmetic="tensor")


def evaluate(logits: Tensor, labels: Tensor, margin: float) -> truth.Truth:
    """The truth, with a margin near the given one that no pair is close to."""
    result = truth.evaluate(logits.double().numpy(), labels.numpy(), margin)
    divergences = result.divergence[result.dissimilar]
    return result.with_margin(truth.margin_in_a_gap(divergences, margin))


def normal(rows: int, columns: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return scale * torch.randn(rows, columns, generator=generator)


@not_of_memory
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 3.0, 100.0])
def test_losses_are_accurate(tensor: Kernels, scale: float, pairs: str) -> None:
    logits, labels = normal(130, 34, scale), torch.arange(130) % PAIRS[pairs]
    expected = evaluate(logits, labels, 2.0)
    for reduction in REDUCTIONS:
        loss = tensor.forward(
            logits, labels, reduction=reduction, margin=expected.margin, with_grad=False
        ).loss
        assert_close(loss, expected.loss(reduction), 1e-6, reduction)


@not_of_memory
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("spread", [1e-3, 1e-2])
def test_rows_that_are_all_alike(tensor: Kernels, spread: float, pairs: str) -> None:
    """Nearly the same distribution, but not the uniform one. What is left of float32's 6e-8 in rows
    that differ by `spread`; in FMA it is the same."""
    logits, labels = normal(130, 34, spread) + normal(1, 34, 1.5), torch.arange(130) % PAIRS[pairs]
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0)
    for reduction in REDUCTIONS:
        loss = tensor.forward(logits, labels, reduction=reduction, with_grad=False).loss
        assert_close(loss, expected.loss(reduction), 3e-8 / spread, reduction)


@not_of_memory
def test_every_product_of_parts_counts(tensor: Kernels) -> None:
    """Rows of two values, whose second and third parts are the same in eight classes: there the
    missing products do not average out. Each row's loss is that of one pair."""
    values = torch.empty(256, 1).uniform_(-2, 2, generator=torch.Generator().manual_seed(0))
    halves = torch.arange(16) < 8
    logits = torch.where(halves == (torch.arange(256) % 2 == 0)[:, None], values, 0.0)
    labels = torch.arange(256) // 2
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 0.0)
    loss = tensor.forward(logits, labels, margin=0.0, reduction="none", with_grad=False).loss
    exact = expected.loss("none")
    large = exact > 0.1
    assert large.sum() > 150
    assert (np.abs(loss.numpy() - exact) / exact)[large].max() < 2e-6


@not_of_memory
@pytest.mark.parametrize("masked", [-1e9, -1e4])
def test_a_class_that_some_rows_mask_with_a_large_number(tensor: Kernels, masked: float) -> None:
    """With the mean as the reference, the rows that mask it would cancel."""
    logits, labels = normal(130, 20, 0.5), torch.arange(130) % 4
    logits[labels >= 2, 7] = masked
    expected = evaluate(logits, labels, 0.2)
    assert 0 < expected.active.sum() < expected.dissimilar.sum()
    for reduction in ("mean", "none"):
        result = tensor.forward(logits, labels, margin=expected.margin, reduction=reduction)
        assert_close(result.loss, expected.loss(reduction), 1e-6, reduction)
    grad = tensor.forward(logits, labels, margin=expected.margin).grad
    assert_close(grad, expected.grad("both", "mean"), 1e-6)


@pytest.mark.parametrize("chunk_rows", [0, 128])
@pytest.mark.parametrize("blocks", [2] if SANITIZE else [1, 2, 4])
@pytest.mark.parametrize("arithmetic", ["fma", "tensor"])
def test_blocks_with_several_tiles(
    kernels: Kernels, arithmetic: str, blocks: int, chunk_rows: int
) -> None:
    """One tile's last slice overlaps with the next tile's first; only sums of losses depend on who
    adds them. One row sends its tiles from the tensor cores to FMA."""
    each = Kernels(kernels.library, tiled=True, arithmetic=arithmetic)
    logits, labels = normal(200, 34), torch.arange(200) % 7
    logits[70, 3] = -torch.inf
    labels[70] = 9  # without a similar row, of which the loss would be infinite
    options = {"margin": 1.0, "chunk_rows": chunk_rows}
    expected = each.forward(logits, labels, **options)
    assert expected.grad.isfinite().all()
    result = each.forward(logits, labels, **options, pair_blocks=blocks)
    assert torch.equal(result.grad, expected.grad)
    assert_close(result.loss, expected.loss.double(), 1e-7)
    exact = truth.evaluate(logits.double().numpy(), labels.numpy(), 1.0)
    assert_close(result.loss, exact.loss("mean"), 1e-6)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_of_one_change_nothing(tensor: Kernels, reduction: str, levels: int) -> None:
    """With weights the pairs are added one by one, without them in blocks where all take part: the
    same to the bit. Some blocks have an ignored row or stand on the diagonal."""
    labels = torch.arange(130 * levels).reshape(130, levels) % 7
    labels[[5, 64]] = -100
    logits, ones = normal(130, 34), torch.ones(130)
    arguments = {"reduction": reduction, "with_grad": False}
    plain = tensor.forward(logits, labels, **arguments)
    weighted = tensor.forward(logits, labels, sample_weights=ones, **arguments)
    assert torch.equal(plain.loss, weighted.loss)
    assert torch.equal(plain.stats, weighted.stats)
    assert plain.stats[2].min() > 0  # some pairs are active


def test_marks_where_all_take_part(tensor: Kernels) -> None:
    """The gradient follows from the marks."""
    logits, labels = normal(128, 34, 1.3), torch.arange(128) % 3
    expected = evaluate(logits, labels, 2.0)
    for gradient in ("both", "second"):
        grad = tensor.forward(logits, labels, margin=expected.margin, gradient=gradient).grad
        assert_close(grad, expected.grad(gradient, "mean"), 2e-6, gradient)
