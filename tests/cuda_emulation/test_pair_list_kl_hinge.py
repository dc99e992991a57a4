"""The CUDA kernels for lists of pairs against the float64 truth, on the emulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import truth
from tests.cuda_emulation.pair_list_emulation import PairListKernels
from tests.cuda_emulation.test_tensor_products import clusters
from tests.native_build import SANITIZE
from tests.operator import GRADIENTS, REDUCTIONS
from tests.test_pair_list_kl_hinge import GRID, Case, make, operator_arguments
from tests.tolerances import TOLERANCES, assert_close

# Without rows there is nothing to launch: N = 0 is the operator's own business.
CASES = [case for case in GRID if case.rows > 0 and case.count <= 300]
CASES += [Case(dtype=dtype, kind="hub", weighted="pair") for dtype in TOLERANCES]
if SANITIZE:  # ten times slower
    CASES = CASES[::3]


@pytest.fixture(scope="module")
def kernels() -> PairListKernels:
    return PairListKernels()


def upstream_for(rows: int) -> Tensor:
    return torch.randn(rows, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_truth(kernels: PairListKernels, case: Case, gradient: str) -> None:
    batch = make(case)
    of_loss, of_grad = TOLERANCES[case.dtype]
    full = TOLERANCES[torch.float64 if case.dtype == torch.float64 else torch.float32].grad
    scale = float(case.count) if case.columns == 1 else 1e-30
    codes = {"gradient": GRADIENTS[gradient], **batch.options}
    for reduction, code in REDUCTIONS.items():
        arguments = operator_arguments(*batch[:3], **codes, reduction=code)
        loss, stats, grad = kernels.forward(arguments)
        assert_close(loss, batch.truth.loss(reduction), of_loss, reduction, scale)
        expected = batch.truth.stats(reduction)
        assert stats[:2].tolist() == expected[:2].tolist()
        assert_close(stats[2], expected[2], 1e-15)
        assert_close(stats[3:], expected[3:], of_loss, "parts", scale)
        if grad is not None:
            assert_close(grad, batch.truth.grad(gradient, reduction), full, reduction, scale)
    upstream = upstream_for(case.rows)
    grad = kernels.backward(upstream, operator_arguments(*batch[:3], **codes, reduction=0))
    expected = batch.truth.grad(gradient, "none", upstream.double().numpy())
    assert_close(grad, expected, of_grad, "backward", scale)


def test_value_without_a_gradient(kernels: PairListKernels) -> None:
    batch = make(Case(dtype=torch.float32))
    results = [
        kernels.forward(operator_arguments(*batch[:3], with_grad=with_grad))
        for with_grad in (True, False)
    ]
    assert results[1][2] is None
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("reduction", REDUCTIONS.values())
def test_same_bits_in_any_order_of_threads_and_blocks(
    kernels: PairListKernels, reduction: int
) -> None:
    batch = make(Case(65, 34, 500, torch.float32, kind="hub", weighted="pair"))
    arguments = operator_arguments(*batch[:3], **batch.options, reduction=reduction)

    def bits(seed: int) -> list[bytes]:
        results = [*kernels.forward(arguments, seed)]
        if reduction == 0:
            results.append(kernels.backward(upstream_for(65), arguments, seed))
        return [x.numpy().tobytes() for x in results if x is not None]

    ascending = bits(0)
    for seed in (1, 2, 3):
        assert bits(seed) == ascending


@pytest.mark.parametrize("index", [-3, 33, 2**40])
def test_bad_indices_give_nan_and_touch_nothing(kernels: PairListKernels, index: int) -> None:
    batch = make(Case(dtype=torch.float32))
    pairs = batch.pairs.clone()
    pairs[[5, 7], [0, 1]] = index
    for reduction in REDUCTIONS.values():
        arguments = operator_arguments(batch.logits, pairs, batch.similar, reduction=reduction)
        loss, _, grad = kernels.forward(arguments)
        assert loss.isnan().any()
        if grad is None:
            grad = kernels.backward(upstream_for(33), arguments)
        assert grad.isnan().any()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("height", [8.0, 20.0])
def test_converged_clusters(kernels: PairListKernels, height: float, gradient: str) -> None:
    """See test_tensor_products.py."""
    labels = torch.arange(32) % 4
    logits = clusters(labels, 17, height)
    i, j = torch.triu_indices(32, 32, 1)
    arguments = operator_arguments(
        logits, torch.stack([i, j], 1), labels[i] == labels[j], gradient=GRADIENTS[gradient]
    )
    found = kernels.forward(arguments)[2]
    exact = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0).grad(gradient, "mean")
    assert np.linalg.norm(found.double().numpy() - exact) < 1e-6 * np.linalg.norm(exact)
