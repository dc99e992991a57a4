"""The loss over a list of must-link and cannot-link pairs, against the float64 truth."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pairloss import pair_kl_hinge_loss, pair_kl_hinge_loss_from_pairs
from tests import cases, truth, truth_pair_list
from tests.native_build import SANITIZE
from tests.operator import GRADIENTS, REDUCTIONS
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

implementations = pytest.mark.parametrize("impl", ["fused", "reference"])
gradients = pytest.mark.parametrize("gradient", GRADIENTS)
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


class Case(NamedTuple):
    rows: int = 33
    columns: int = 10
    count: int = 300
    dtype: torch.dtype = torch.float64
    layout: str = "contiguous"
    kind: str = "mixed"  # "similar", "dissimilar", "hub", "self"
    weighted: str = ""  # any of "pair", "kind", "balance"

    def __str__(self) -> str:
        return "-".join(str(value).removeprefix("torch.") for value in self if value != "")


class Batch(NamedTuple):
    logits: Tensor
    pairs: Tensor
    similar: Tensor
    options: dict[str, Any]
    truth: truth_pair_list.PairListTruth

    def loss(self, device: torch.device, **more: Any) -> Any:
        """What the function returns, and the logits."""
        logits = cases.move(self.logits, device).requires_grad_()
        options = {
            name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.options.items()
        }
        pairs, similar = self.pairs.to(device), self.similar.to(device)
        return pair_kl_hinge_loss_from_pairs(logits, pairs, similar, **options, **more), logits


@cache
def make(case: Case) -> Batch:
    """Pairs of either order, many twice and some in both kinds; a third of the rows in none."""
    rng = np.random.default_rng([case.rows, case.columns, case.count])
    values = torch.from_numpy(rng.standard_normal((case.rows, case.columns)) * 1.1)
    logits = cases.lay_out(values.to(case.dtype), case.layout)
    pairs = rng.integers(0, max(2 * case.rows // 3, 1), (case.count, 2))
    if case.kind == "hub":  # more partners than are added up in one go
        pairs[:, 1] = 5
    if case.kind == "self":
        pairs[:, 1] = pairs[:, 0]
    similar = rng.random(case.count) < {"similar": 1.0, "dissimilar": 0.0}.get(case.kind, 0.4)
    options: dict[str, Any] = {}
    if "pair" in case.weighted:
        full = torch.float64 if case.dtype == torch.float64 else torch.float32
        options["pair_weights"] = torch.from_numpy(rng.uniform(0.0, 3.0, case.count)).to(full)
    if "kind" in case.weighted:
        options |= {"similar_weight": 0.4, "dissimilar_weight": 1.7}
    if "balance" in case.weighted:
        options["balance"] = "pairs"
    arrays = {
        name: x.double().numpy() if isinstance(x, Tensor) else x for name, x in options.items()
    }
    result = truth_pair_list.evaluate(logits.double().numpy(), pairs, similar, **arrays)
    near = 0.5 if case.columns == 1 else float(np.median([1.0, *result.divergence]))
    margin = truth.margin_in_a_gap(result.divergence, near)
    result = result.with_margin(margin)
    if result.divergence.size >= 100 and case.columns > 1:
        assert 0.05 < (result.divergence < margin).mean() < 0.95
    return Batch(
        logits,
        torch.from_numpy(pairs),
        torch.from_numpy(similar),
        {**options, "margin": margin},
        result,
    )


GRID = (
    *(Case(columns=columns) for columns in (1, 2, 16, 17, 34, 300)),
    *(Case(kind=kind) for kind in ("similar", "dissimilar", "hub", "self")),
    *(Case(weighted=weighted) for weighted in ("pair", "kind", "balance", "pair kind balance")),
    *(Case(rows=rows, count=count) for rows, count in ((0, 0), (1, 0), (1, 3), (2, 1), (9, 0))),
    *(Case(300, 34, 3000, dtype, weighted="pair") for dtype in TOLERANCES),
    *(Case(65, 34, 2000, torch.float32, layout, "hub") for layout in sorted(set(cases.LAYOUTS))),
)
grid = pytest.mark.parametrize("case", GRID, ids=str)
SMALL = Case(11, 4, 40, weighted="pair kind balance")


def random_upstream(loss: Tensor) -> Tensor:
    """Of either sign, never 1."""
    generator = torch.Generator().manual_seed(11)
    return (torch.randn(loss.shape, generator=generator, dtype=loss.dtype) * 3).to(loss.device)


# ---- Values and gradients -----------------------------------------------------------------------


def test_truth_equals_a_loop_over_the_definition() -> None:
    z = np.random.default_rng(0).standard_normal((4, 3))
    pairs = np.array([[0, 1], [1, 0], [2, 3], [3, 3], [0, 2]])
    similar = np.array([True, False, False, True, True])
    weights = np.array([0.5, 2.0, 1.5, 9.0, 0.25])

    def kl(a: np.ndarray, b: np.ndarray) -> float:
        p, q = (np.exp(x) / np.exp(x).sum() for x in (a, b))
        return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))

    rows = np.zeros(4)
    for (i, j), alike, weight in zip(pairs, similar, weights, strict=True):
        if i != j:
            both = kl(z[i], z[j]), kl(z[j], z[i])
            term = weight * sum(d if alike else max(0.9 - d, 0.0) for d in both)
            rows[i] += term
            rows[j] += term
    result = truth_pair_list.evaluate(z, pairs, similar, margin=0.9, pair_weights=weights)
    np.testing.assert_allclose(result.loss("none"), rows, rtol=1e-13)
    np.testing.assert_allclose(result.loss("mean"), rows.sum() / 2 / 4, rtol=1e-13)


@implementations
@grid
def test_values_and_stats(case: Case, impl: str, device: torch.device) -> None:
    batch = make(case)
    tolerance = TOLERANCES[case.dtype].loss
    for reduction in REDUCTIONS:
        for grad_enabled in (True, False):
            with torch.set_grad_enabled(grad_enabled):
                (loss, stats), _ = batch.loss(
                    device, reduction=reduction, impl=impl, return_stats=True
                )
            full = torch.float64 if case.dtype == torch.float64 else torch.float32
            assert loss.dtype == full
            assert loss.requires_grad == grad_enabled
            # Of a single class all divergences are 0, up to rounding.
            scale = 1.0 if case.columns == 1 else 1e-30
            assert_close(loss, batch.truth.loss(reduction), tolerance, reduction, scale)
            expected = batch.truth.stats(reduction)
            values = torch.stack(stats).cpu().numpy()
            assert values.dtype == np.float64
            assert not any(value.requires_grad for value in stats)
            np.testing.assert_array_equal(values[:2], expected[:2])
            np.testing.assert_allclose(values[2], expected[2], rtol=1e-7)
            assert_close(values[3:], expected[3:], tolerance, "parts", scale)


@implementations
@gradients
@grid
def test_gradients(case: Case, gradient: str, impl: str, device: torch.device) -> None:
    batch = make(case)
    scale = float(case.count) if case.columns == 1 else 1e-30
    listed = np.isin(np.arange(case.rows), batch.pairs)
    for reduction in REDUCTIONS:
        loss, logits = batch.loss(device, reduction=reduction, gradient=gradient, impl=impl)
        upstream = random_upstream(loss)
        (grad,) = torch.autograd.grad(loss, logits, upstream)
        assert grad.dtype == case.dtype
        expected = batch.truth.grad(gradient, reduction, upstream.double().cpu().numpy())
        assert_close(grad, expected, TOLERANCES[case.dtype].grad, reduction, scale)
        assert (grad.cpu()[~listed] == 0).all()


@implementations
@reductions
def test_all_pairs_listed_are_all_pairs(reduction: str, impl: str, device: torch.device) -> None:
    logits = torch.randn(20, 5, dtype=torch.float64, device=device)
    labels = torch.arange(20, device=device) % 3
    pairs = torch.triu_indices(20, 20, 1, device=device).T
    similar = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    expected = pair_kl_hinge_loss(logits, labels, reduction=reduction, impl="reference")
    for dtype in (torch.int64, torch.int32, torch.uint8):
        actual = pair_kl_hinge_loss_from_pairs(
            logits, pairs.to(dtype), similar, reduction=reduction, impl=impl
        )
        assert_close(actual, expected.cpu().numpy(), 1e-12)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_small_and_confident_logits(scale: float, device: torch.device) -> None:
    """float32 logits to float32's digits, also where all P are nearly uniform."""
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.standard_normal((200, 34)) * scale).float()
    pairs, similar = rng.integers(0, 200, (4000, 2)), rng.random(4000) < 0.5
    result = truth_pair_list.evaluate(logits.double().numpy(), pairs, similar, margin=0.0)
    leaf = logits.to(device).requires_grad_()
    loss = pair_kl_hinge_loss_from_pairs(
        leaf, torch.from_numpy(pairs).to(device), torch.from_numpy(similar).to(device), margin=0.0
    )
    loss.backward()
    assert_close(loss, result.loss("mean"), 1e-4 if scale < 1 else 1e-5)
    assert_close(leaf.grad, result.grad("both", "mean"), 1e-3 if scale < 1 else 1e-5)


# ---- NaN and infinity ---------------------------------------------------------------------------


@implementations
@reductions
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_rows_reach_the_pairs_that_they_are_in(
    value: float, reduction: str, impl: str, device: torch.device
) -> None:
    logits = torch.randn(6, 4, device=device)
    logits[0, 1] = value
    logits.requires_grad_()
    pairs = torch.tensor([[1, 2], [4, 3], [0, 0]], device=device)
    similar = torch.tensor([True, False, True], device=device)
    loss = pair_kl_hinge_loss_from_pairs(logits, pairs, similar, reduction=reduction, impl=impl)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert grad.isfinite().all()

    for kind in (similar, ~similar):
        pairs[2] = torch.tensor([5, 0], device=device)
        loss = pair_kl_hinge_loss_from_pairs(logits, pairs, kind, reduction=reduction, impl=impl)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert grad[[0, 5]].isnan().all()
        assert grad[1:5].isfinite().all()
        if reduction == "none":
            assert loss.isnan().tolist() == [True, False, False, False, False, True]
        else:
            assert loss.isnan()


@implementations
@gradients
def test_masked_classes(gradient: str, impl: str, device: torch.device) -> None:
    """-inf where the similar rows have it, too; dissimilar ones are beyond any margin."""
    logits = torch.randn(6, 5, dtype=torch.float64)
    logits[:3, 2] = -math.inf
    pairs, similar = torch.tensor([[0, 1], [1, 2], [2, 3], [4, 0]]), torch.tensor([1, 0, 0, 0]) > 0
    result = truth_pair_list.evaluate(logits.numpy(), pairs.numpy(), similar.numpy(), margin=9.0)
    leaf = logits.to(device).requires_grad_()
    loss = pair_kl_hinge_loss_from_pairs(
        leaf, pairs.to(device), similar.to(device), margin=9.0, gradient=gradient, impl=impl
    )
    loss.backward()
    assert_close(loss, result.loss("mean"), 1e-12)
    assert_close(leaf.grad, result.grad(gradient, "mean"), 1e-12)
    far = pair_kl_hinge_loss_from_pairs(
        leaf, pairs.to(device), similar.to(device) | True, gradient=gradient, impl=impl
    )
    assert far == math.inf


# ---- Arguments ----------------------------------------------------------------------------------


@implementations
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pairs": torch.zeros(3, 2)}, TypeError, "pairs: expected an integer dtype, got float32"),
        ({"pairs": torch.zeros(3, 3).long()}, ValueError, r"pairs: expected shape \(E, 2\), got"),
        ({"pairs": [[0, 1]]}, TypeError, "pairs: expected a Tensor, got list"),
        ({"similar": torch.ones(3)}, TypeError, "similar: expected bool, got float32"),
        ({"similar": torch.ones(2) > 0}, ValueError, r"similar: expected shape \(3,\)"),
        ({"pair_weights": torch.ones(4)}, ValueError, r"pair_weights: expected shape \(3,\)"),
        ({"pair_weights": torch.ones(3).long()}, TypeError, "pair_weights: expected a float dtype"),
        ({"margin": -1.0}, ValueError, "margin: expected"),
        ({"impl": "fast"}, ValueError, "impl: expected one of"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type, message: str, impl: str) -> None:
    pairs = torch.tensor([[0, 1], [2, 3], [1, 3]])
    good = {"logits": torch.randn(4, 3), "pairs": pairs, "similar": torch.ones(3) > 0, "impl": impl}
    with pytest.raises(error, match=message):
        pair_kl_hinge_loss_from_pairs(**{**good, **change})


@implementations
@pytest.mark.parametrize("index", [-1, 4, 2**40])
def test_the_first_bad_index_is_named(index: int, impl: str) -> None:
    pairs = torch.tensor([[0, 1], [2, index], [1, index]])
    with pytest.raises(IndexError, match=rf"0 <= index < 4, got {index} at \[1, 1\]"):
        pair_kl_hinge_loss_from_pairs(torch.randn(4, 3), pairs, torch.ones(3) > 0, impl=impl)


def test_the_operator_checks_indices_itself() -> None:
    pairs = torch.tensor([[0, 1], [-7, 0]])
    arguments = operator_arguments(torch.randn(4, 3), pairs, torch.ones(2) > 0)
    with pytest.raises(RuntimeError, match=r"0 <= index < 4, got -7 at \[1, 0\]"):
        torch.ops.pairloss.pair_list_kl_hinge(*arguments)


@pytest.mark.cuda
@reductions
def test_a_bad_index_on_a_gpu_is_nan(reduction: str) -> None:
    pairs = torch.tensor([[0, 1], [2, 1], [1, 99]], device="cuda")
    logits = torch.randn(4, 3, device="cuda", requires_grad=True)
    loss = pair_kl_hinge_loss_from_pairs(logits, pairs, pairs[:, 0] > 0, reduction=reduction)
    loss.sum().backward()
    assert loss.isnan().any()
    assert logits.grad.isnan().any()


# ---- Under the rest of PyTorch ------------------------------------------------------------------


def operator_arguments(
    logits: Tensor,
    pairs: Tensor,
    similar: Tensor,
    pair_weights: Tensor | None = None,
    *,
    margin: float = 2.0,
    gradient: int = 0,
    reduction: int = 1,
    similar_weight: float = 1.0,
    dissimilar_weight: float = 1.0,
    balance: str | None = None,
    with_grad: bool = True,
) -> tuple[object, ...]:
    """In the order of the schema."""
    kinds = similar_weight, dissimilar_weight, balance is not None
    return logits, pairs, similar, pair_weights, margin, gradient, reduction, *kinds, with_grad


@implementations
@reductions
def test_gradcheck(reduction: str, impl: str, device: torch.device) -> None:
    batch = make(SMALL)
    assert 0 < batch.truth.kinds[1].active.sum() < batch.truth.divergence.size
    options = {
        name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.options.items()
    }

    def loss(z: Tensor) -> Tensor:
        return pair_kl_hinge_loss_from_pairs(
            z,
            batch.pairs.to(device),
            batch.similar.to(device),
            reduction=reduction,
            impl=impl,
            **options,
        )

    assert torch.autograd.gradcheck(loss, batch.logits.to(device).requires_grad_())


@pytest.mark.parametrize(
    ("gradient", "dtype"), [("both", torch.float64), ("second", torch.bfloat16)]
)
@reductions
def test_opcheck(reduction: str, gradient: str, dtype: torch.dtype, device: torch.device) -> None:
    batch = make(SMALL._replace(dtype=dtype))
    logits, pairs, similar = (x.to(device) for x in batch[:3])
    options = {
        name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.options.items()
    }
    codes = {"gradient": GRADIENTS[gradient], "reduction": REDUCTIONS[reduction]}
    for requires_grad in (True, False):
        leaf = logits.detach().requires_grad_(requires_grad)
        arguments = operator_arguments(
            leaf, pairs, similar, **options, **codes, with_grad=requires_grad
        )
        torch.library.opcheck(torch.ops.pairloss.pair_list_kl_hinge.default, arguments)
    upstream = torch.randn(SMALL.rows, device=device)
    backward = torch.ops.pairloss.pair_list_kl_hinge_backward.default
    torch.library.opcheck(backward, (upstream, logits.detach(), *arguments[1:]))


@implementations
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_without_a_graph_break(reduction: str, impl: str, device: torch.device) -> None:
    torch._dynamo.reset()
    batch = make(SMALL)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(z: Tensor, pairs: Tensor, similar: Tensor, weights: Tensor) -> Tensor:
        options = {**batch.options, "pair_weights": weights}
        return pair_kl_hinge_loss_from_pairs(
            z, pairs, similar, reduction=reduction, impl=impl, **options
        )

    logits, *others = (x.to(device) for x in (*batch[:3], batch.options["pair_weights"]))
    logits.requires_grad_()
    loss = step(logits, *others)
    upstream = random_upstream(loss)
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    assert_close(loss, batch.truth.loss(reduction), 1e-12)
    expected = batch.truth.grad("both", reduction, upstream.double().cpu().numpy())
    assert_close(grad, expected, 1e-12)


@reductions
def test_fake_functorch_and_autocast(reduction: str, device: torch.device) -> None:
    batch = make(SMALL._replace(dtype=torch.float32, weighted=""))
    logits, pairs, similar = (x.to(device) for x in batch[:3])

    def loss(z: Tensor) -> Tensor:
        return pair_kl_hinge_loss_from_pairs(z, pairs, similar, reduction=reduction)

    def total(z: Tensor) -> Tensor:
        return loss(z).sum()

    leaf = logits.detach().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(logits), expected)
    several = torch.stack([logits, logits * 2])
    wanted = torch.stack([torch.func.grad(total)(z) for z in several])
    torch.testing.assert_close(torch.vmap(torch.func.grad(total))(several), wanted)
    with torch.autocast(device.type, torch.bfloat16):
        half = loss(logits.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(logits.bfloat16()))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x.cpu()) for x in (logits, pairs, similar)]
        assert pair_kl_hinge_loss_from_pairs(*fakes, reduction=reduction).shape == half.shape


@reductions
def test_second_derivative_is_refused_by_the_kernels_alone(
    reduction: str, device: torch.device
) -> None:
    batch = make(SMALL)
    loss, logits = batch.loss(device, reduction=reduction)
    (grad,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match='impl="reference"'):
        grad.square().sum().backward()

    def reference(z: Tensor) -> Tensor:
        replaced = batch._replace(logits=z)
        options = {
            k: x.to(device) if isinstance(x, Tensor) else x for k, x in replaced.options.items()
        }
        return pair_kl_hinge_loss_from_pairs(
            z,
            batch.pairs.to(device),
            batch.similar.to(device),
            reduction=reduction,
            impl="reference",
            **options,
        )

    assert torch.autograd.gradgradcheck(
        reference,
        logits.detach().requires_grad_(),
        nondet_tol=1e-12,  # index_add on a GPU
    )


# ---- The same bits, little memory, other instruction sets ----------------------------------------


def evaluate(case: Case, device: torch.device, reduction: str) -> list[Tensor]:
    batch = make(case)
    (loss, stats), logits = batch.loss(device, reduction=reduction, return_stats=True)
    (grad,) = torch.autograd.grad(loss, logits, random_upstream(loss))
    return [loss.detach(), grad, *stats]


@reductions
@pytest.mark.parametrize("kind", ["mixed", "hub"])
def test_the_same_bits_at_any_number_of_threads(kind: str, reduction: str) -> None:
    case = Case(500, 34, 20_000, torch.float32, kind=kind, weighted="pair")
    device = torch.device("cpu")
    expected = evaluate(case, device, reduction)
    for threads in (2, 3, 5, 5):
        torch.set_num_threads(threads)
        for actual, wanted in zip(evaluate(case, device, reduction), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.cuda
@reductions
def test_the_same_bits_from_run_to_run_on_a_gpu(reduction: str) -> None:
    case = Case(500, 34, 20_000, torch.float32, kind="hub", weighted="pair")
    runs = [evaluate(case, torch.device("cuda"), reduction) for _ in range(3)]
    for results in zip(*runs, strict=True):
        assert all(torch.equal(result, results[0]) for result in results)


def print_results() -> None:
    """What the process below prints."""
    device, results = torch.device("cpu"), []
    for dtype in TOLERANCES:
        results += [x.double().tolist() for x in evaluate(Case(65, 34, 500, dtype), device, "none")]
    print(json.dumps(results))


@pytest.mark.parametrize("name", ["default", "avx2"])  # the best one runs everywhere else
def test_cpu_capability(name: str) -> None:
    code = "from tests import test_pair_list_kl_hinge as t; t.print_results()"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PAIRLOSS_CPU_CAPABILITY": name, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    results = json.loads(run.stdout)
    for dtype, tolerance in TOLERANCES.items():
        loss, grad, *_ = (results.pop(0) for _ in range(7))
        expected = make(Case(65, 34, 500, dtype)).truth
        assert_close(loss, expected.loss("none"), tolerance.loss)
        upstream = random_upstream(torch.tensor(loss, dtype=torch.float64))
        if dtype != torch.float64:
            upstream = random_upstream(torch.tensor(loss, dtype=torch.float32))
        wanted = expected.grad("both", "none", upstream.double().numpy())
        assert_close(grad, wanted, tolerance.grad)


MEMORY = """
import torch
from pairloss import pair_kl_hinge_loss_from_pairs

def peak_kib(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":"))

def step(count):
    logits = torch.randn(20_000, 34, requires_grad=True)
    pairs, similar = torch.randint(20_000, (count, 2)), torch.rand(count) < 0.5
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far is forgotten
    before = peak_kib("VmRSS")
    pair_kl_hinge_loss_from_pairs(logits, pairs, similar).backward()
    return peak_kib("VmHWM") - before

step(1000)  # threads are started, code is loaded
print(step(1_000_000))
"""


@pytest.mark.skipif(SANITIZE, reason="the sanitizers take memory of their own")
def test_memory() -> None:
    """16 bytes a pair, and a few matrices of the logits' size; their pairs' logits are 272 MB."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert int(run.stdout) / 1024 < 16 + 5 * 2.6 + 10


@pytest.mark.parametrize("gradient", ["both", "second"])
def test_converged_clusters(gradient: str, device: torch.device) -> None:
    """Nearly one-hot rows: what is left of their gradient is a difference of large numbers."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 6
    logits = torch.randn(120, 17, generator=generator)
    logits[torch.arange(120), labels] += 20
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0).grad(gradient, "mean")
    pairs = torch.triu_indices(120, 120, 1).T
    similar = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    logits = logits.to(device).requires_grad_()
    pair_kl_hinge_loss_from_pairs(
        logits, pairs.to(device), similar.to(device), gradient=gradient
    ).backward()
    error = np.linalg.norm(logits.grad.double().cpu().numpy() - expected)
    assert error <= 2e-6 * np.linalg.norm(expected)
