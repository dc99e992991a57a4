"""Label levels, reference sets, similarity matrices and weights, against the float64 truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pairloss import (
    PairKLHingeLoss,
    pair_kl_hinge_loss,
    pair_kl_hinge_loss_from_similarity,
)
from tests import forms, operator, truth_forms
from tests.forms import Form
from tests.operator import GRADIENTS, REDUCTIONS
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

implementations = pytest.mark.parametrize("impl", ["fused", "reference"])
gradients = pytest.mark.parametrize("gradient", GRADIENTS)
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
grid = pytest.mark.parametrize("form", forms.GRID, ids=str)

# One of each form, for what does not depend on the numbers.
EACH = (
    Form(11, 4, levels=2, ignored="some", weighted="level"),
    Form(11, 4, ref_rows=7, levels=2),
    Form(11, 4, similarity="int8", symmetric=False),
    Form(11, 4, weighted="kind sample balance"),
    Form(11, 4, ref_rows=7, weighted="kind sample ref balance"),
)
each = pytest.mark.parametrize("form", EACH, ids=str)


def random_upstream(loss: Tensor) -> Tensor:
    """Of either sign, never 1."""
    generator = torch.Generator().manual_seed(11)
    return (torch.randn(loss.shape, generator=generator, dtype=loss.dtype) * 3).to(loss.device)


# ---- The truth itself ---------------------------------------------------------------------------


def test_truth_equals_loops_over_the_definition() -> None:
    rng = np.random.default_rng(0)
    z, ref = rng.standard_normal((4, 3)), rng.standard_normal((5, 3))
    labels, ref_labels = rng.integers(-1, 2, (4, 2)), rng.integers(-1, 2, (5, 2))
    weights, ref_weights = rng.random(4), rng.random(5)

    def kl(a: np.ndarray, b: np.ndarray) -> float:
        p, q = (np.exp(x) / np.exp(x).sum() for x in (a, b))
        return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))

    level_weights = (0.7, 1.9)
    total, rows = 0.0, np.zeros(4)
    for g, level_weight in enumerate(level_weights):
        pairs, terms = 0, np.zeros(4)
        for i, j in itertools.product(range(4), range(5)):
            if -1 in (labels[i, g], ref_labels[j, g]):
                continue
            pairs += 1
            for d in (kl(z[i], ref[j]), kl(ref[j], z[i])):
                similar = labels[i, g] == ref_labels[j, g]
                value = 0.4 * d if similar else 1.7 * max(0.3 - d, 0.0)
                terms[i] += level_weight * weights[i] * ref_weights[j] * value
        assert pairs > 5
        total += terms.sum() / pairs
        rows += terms

    result = truth_forms.evaluate(
        z,
        labels,
        ref,
        ref_labels,
        margin=0.3,
        ignore_index=-1,
        level_weights=level_weights,
        similar_weight=0.4,
        dissimilar_weight=1.7,
        sample_weights=weights,
        ref_sample_weights=ref_weights,
    )
    np.testing.assert_allclose(result.loss("mean"), total, rtol=1e-13)
    np.testing.assert_allclose(result.loss("none"), rows, rtol=1e-13)


def test_balanced_truth_is_half_of_two_means() -> None:
    batch = forms.make(Form(weighted="balance", labels="lopsided"))
    (level,) = batch.truth.levels
    similar, dissimilar = (level.ordered[x].mean() * 2 for x in (level.similar, level.dissimilar))
    np.testing.assert_allclose(batch.truth.loss("mean"), (similar + dissimilar) / 2, rtol=1e-13)
    parts = batch.truth.stats("mean")[3:, 0]
    np.testing.assert_allclose(parts, [similar / 2, dissimilar / 2], rtol=1e-13)


# ---- Values and gradients -----------------------------------------------------------------------


@implementations
@grid
def test_values_and_stats(form: Form, impl: str, device: torch.device) -> None:
    batch = forms.make(form)
    tolerance = TOLERANCES[form.dtype].loss
    for reduction, grad_enabled in itertools.product(REDUCTIONS, (True, False)):
        what = f"{reduction}, gradient {'on' if grad_enabled else 'off'}"
        with torch.set_grad_enabled(grad_enabled):
            (loss, stats), _ = batch.loss(device, reduction=reduction, impl=impl, return_stats=True)
        full = torch.float64 if form.dtype == torch.float64 else torch.float32
        assert loss.dtype == full, what
        assert loss.requires_grad == grad_enabled
        assert_close(loss, batch.truth.loss(reduction), tolerance, f"loss, {what}")
        expected = batch.truth.stats(reduction)
        for value in stats:
            assert value.dtype == torch.float64
            assert value.shape == ((form.levels,) if form.levels else ())
            assert not value.requires_grad
        values = torch.stack(stats).cpu().numpy().reshape(expected.shape)
        np.testing.assert_array_equal(values[:2], expected[:2], what)
        np.testing.assert_allclose(values[2], expected[2], rtol=1e-7, err_msg=what)
        assert_close(values[3:], expected[3:], tolerance, f"parts, {what}")


@implementations
@gradients
@grid
def test_gradients(form: Form, gradient: str, impl: str, device: torch.device) -> None:
    """Of the batch and of the reference set, each only where one is required."""
    batch = forms.make(form)
    tolerance = TOLERANCES[form.dtype].grad
    # Of a single class, and of one pair that is similar in one level and not in the other, it is 0
    # up to rounding.
    scale = float(form.rows + 1) if form.columns == 1 or form.rows == 2 else 1e-30
    for reduction in REDUCTIONS:
        loss, leaves = batch.loss(device, reduction=reduction, gradient=gradient, impl=impl)
        upstream = random_upstream(loss)
        grads = torch.autograd.grad(loss, leaves, upstream)
        expected = batch.truth.grads(gradient, reduction, upstream.double().cpu().numpy())
        for leaf, grad, exact in zip(leaves, grads, expected, strict=False):
            assert grad.dtype == form.dtype
            assert grad.shape == leaf.shape
            assert_close(grad, exact, tolerance, reduction, scale)


@implementations
@reductions
@pytest.mark.parametrize("which", ["logits", "ref_logits"])
def test_gradient_only_where_required(
    which: str, reduction: str, impl: str, device: torch.device
) -> None:
    batch = forms.make(EACH[1])
    tensors = {name: x.detach().to(device) for name, x in batch.tensors.items()}
    tensors[which].requires_grad_()
    loss = forms.call(tensors, **batch.options, reduction=reduction, impl=impl)
    upstream = random_upstream(loss)
    loss.backward(upstream)
    expected = batch.truth.grads("both", reduction, upstream.double().cpu().numpy())
    assert_close(tensors[which].grad, expected[which == "ref_logits"], 1e-12)
    assert all(x.grad is None for name, x in tensors.items() if name != which)


# ---- What a form means in terms of others -------------------------------------------------------


@implementations
@reductions
@pytest.mark.parametrize("with_reference", [False, True])
def test_levels_are_the_weighted_sum_of_single_levels(
    with_reference: bool, reduction: str, impl: str, device: torch.device
) -> None:
    form = Form(levels=3, ignored="some", ref_rows=21 if with_reference else -1)
    batch = forms.make(form)
    weights = (0.3, 0.0, 2.5)
    loss, leaves = batch.loss(device, level_weights=weights, reduction=reduction, impl=impl)
    upstream = random_upstream(loss)
    grads = torch.autograd.grad(loss, leaves, upstream)
    parts = []
    for g, weight in enumerate(weights):
        of_level = {
            name: x[:, g] if name.endswith("labels") else x for name, x in batch.tensors.items()
        }
        single = batch._replace(tensors=of_level)
        part, part_leaves = single.loss(device, reduction=reduction, impl=impl)
        part_grads = torch.autograd.grad(part, part_leaves, upstream)
        parts.append([weight * x for x in (part.detach(), *part_grads)])
    for actual, *terms in zip((loss, *grads), *parts, strict=True):
        assert_close(actual, sum(terms).cpu().numpy(), 1e-13)


@implementations
@gradients
def test_a_batch_is_two_parts_and_their_cross_pairs(
    gradient: str, impl: str, device: torch.device
) -> None:
    tensors = forms.make(Form(labels="few")).tensors
    logits, labels = tensors["logits"].to(device), tensors["labels"].to(device)

    def loss(*arguments: Tensor) -> Tensor:
        return pair_kl_hinge_loss(*arguments, gradient=gradient, reduction="sum", impl=impl)

    leaf = logits.detach().requires_grad_()
    whole = loss(leaf, labels)
    (expected,) = torch.autograd.grad(whole, leaf)
    first, second = (x.detach().requires_grad_() for x in (logits[:12], logits[12:]))
    of_first, of_second = labels[:12], labels[12:]
    parts = loss(first, of_first) + loss(second, of_second)
    parts = parts + loss(first, of_first, second, of_second)
    grads = torch.cat(torch.autograd.grad(parts, (first, second)))
    assert_close(parts, whole.item(), 1e-13)
    assert_close(grads, expected.cpu().numpy(), 1e-13)


@implementations
@reductions
def test_similarity_of_equal_labels_is_labels(
    reduction: str, impl: str, device: torch.device
) -> None:
    tensors = forms.make(Form(ignored="some")).tensors
    logits, labels = tensors["logits"].to(device), tensors["labels"].to(device)
    known = (labels != -100)[:, None] & (labels != -100)
    matrix = torch.where(labels[:, None] == labels, 1.0, -1.0) * known
    options = {"reduction": reduction, "impl": impl}
    expected = pair_kl_hinge_loss(logits, labels, **options)
    # Of floats the sign counts; what stands on the diagonal does not.
    for scale in (1.0, 1e-30, 1e30):
        scaled = (matrix.double() * scale).fill_diagonal_(-1.0)
        actual = pair_kl_hinge_loss_from_similarity(logits, scaled, **options)
        assert_close(actual, expected.cpu().numpy(), 1e-13)


@implementations
@reductions
def test_the_module_is_the_function(reduction: str, impl: str, device: torch.device) -> None:
    form = Form(levels=2, ref_rows=12, weighted="level kind sample ref balance")
    batch = forms.make(form)
    tensors = {name: x.to(device) for name, x in batch.tensors.items()}
    module = PairKLHingeLoss(**batch.options, reduction=reduction, impl=impl)
    assert_close(module(**tensors), batch.truth.loss(reduction), 1e-12)


# ---- NaN and infinity ---------------------------------------------------------------------------


@implementations
@reductions
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_rows_reach_the_result_unless_they_take_no_part(
    value: float, reduction: str, impl: str, device: torch.device
) -> None:
    """inf, too: its softmax is NaN."""
    logits = torch.randn(6, 4, dtype=torch.float64, device=device)
    ref = torch.randn(5, 4, dtype=torch.float64, device=device)
    logits[2, 1] = ref[3, 2] = value
    labels = torch.tensor([[0, 1]] * 6, device=device)
    ref_labels = torch.tensor([[0, 2]] * 5, device=device)
    options = {"reduction": reduction, "impl": impl}

    ignored, ref_ignored = labels.clone(), ref_labels.clone()
    ignored[2] = ref_ignored[3] = -100
    leaves = [logits.requires_grad_(), ref.requires_grad_()]
    loss = pair_kl_hinge_loss(logits, ignored, ref, ref_ignored, **options)
    grads = torch.autograd.grad(loss.sum(), leaves)
    assert all(x.isfinite().all() for x in (loss, *grads))
    assert (grads[0][2] == 0).all()
    assert (grads[1][3] == 0).all()

    ignored[2, 1] = 7  # valid in one level is enough
    loss = pair_kl_hinge_loss(logits, ignored, ref, ref_ignored, **options)
    grad, ref_grad = torch.autograd.grad(loss.sum(), leaves)
    assert grad[2].isnan().all()
    if reduction == "none":
        assert loss[2].isnan()  # the kernels: all rows that take part
    else:
        assert loss.isnan()
    assert (ref_grad[3] == 0).all()

    similarity = torch.ones(6, 6, dtype=torch.int8, device=device)
    similarity[2] = 0
    similarity[:, 2] = 0
    loss = pair_kl_hinge_loss_from_similarity(logits, similarity, **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    similarity[4, 2] = -1
    loss = pair_kl_hinge_loss_from_similarity(logits, similarity, **options)
    assert loss.isnan().any()


@implementations
@reductions
def test_similar_rows_out_of_reach_are_infinitely_far(
    reduction: str, impl: str, device: torch.device
) -> None:
    """From a row that allows a class to one that does not; dissimilar, they are no active pair."""
    logits = torch.zeros(2, 3, device=device)
    ref = torch.zeros(2, 3, device=device)
    ref[0, 0] = -math.inf
    labels = torch.tensor([0, 1], device=device)
    options = {"reduction": reduction, "impl": impl, "margin": 0.1, "return_stats": True}
    loss, stats = pair_kl_hinge_loss(logits, labels, ref, labels, **options)
    assert (loss.tolist() if reduction == "none" else [loss.item(), 0.2])[0] == math.inf
    # Of the four directions of two dissimilar pairs, those between rows of equal logits.
    assert stats.active_fraction == 0.5
    loss, _ = pair_kl_hinge_loss(logits, labels + 2, ref, labels, **options)
    assert loss.isfinite().all()


# ---- Under the rest of PyTorch ------------------------------------------------------------------


@implementations
@reductions
@each
def test_gradcheck(form: Form, reduction: str, impl: str, device: torch.device) -> None:
    batch = forms.make(form)
    active = sum(level.active.sum() for level in batch.truth.levels)
    assert 0 < active < batch.truth.dissimilar_divergence.size
    _, leaves = batch.loss(device, impl=impl)
    tensors = {name: x.to(device) for name, x in batch.tensors.items()}

    def loss(*logits: Tensor) -> Tensor:
        with_logits = {**tensors, **dict(zip(("logits", "ref_logits"), logits, strict=False))}
        return forms.call(with_logits, **batch.options, reduction=reduction, impl=impl)

    assert torch.autograd.gradcheck(loss, leaves)


@reductions
@each
def test_opcheck(form: Form, reduction: str, device: torch.device) -> None:
    batch = forms.make(form)
    options = {name: value for name, value in batch.options.items() if name != "level_weights"}
    if "level_weights" in batch.options:
        weights = batch.options["level_weights"]
        options["level_weights"] = torch.tensor(weights, dtype=torch.float64)
    options["balance"] = "balance" in options
    tensors = {name: x.detach().to(device) for name, x in batch.tensors.items()}
    for name in ("logits", "ref_logits"):
        if name in tensors:
            tensors[name].requires_grad_()
    arguments = operator.arguments(
        **tensors,
        **options,
        reduction=REDUCTIONS[reduction],
        with_ref_grad="ref_logits" in tensors,
    )
    torch.library.opcheck(torch.ops.pairloss.pair_kl_hinge.default, arguments)
    if reduction == "none":
        detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
        upstream = torch.randn(form.rows, dtype=torch.float64, device=device)
        backward = torch.ops.pairloss.pair_kl_hinge_backward.default
        torch.library.opcheck(backward, (upstream, *detached))


@implementations
@pytest.mark.parametrize("reduction", ["mean", "none"])
@each
def test_compile_without_a_graph_break(
    form: Form, reduction: str, impl: str, device: torch.device
) -> None:
    torch._dynamo.reset()
    batch = forms.make(form)
    expected, leaves = batch.loss(device, reduction=reduction, impl=impl)
    tensors = {name: x.to(device) for name, x in batch.tensors.items()}
    tensors |= dict(zip(("logits", "ref_logits"), leaves, strict=False))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(tensors: dict[str, Tensor]) -> Tensor:
        return forms.call(tensors, **batch.options, reduction=reduction, impl=impl)

    loss = step(tensors)
    upstream = random_upstream(loss)
    torch.testing.assert_close(loss, expected)
    for actual, wanted in zip(
        torch.autograd.grad(loss, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted)
