"""What only a GPU can show: streams, graphs, devices, memory, and sizes beyond the emulation's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from pairloss import pair_kl_hinge_loss
from pairloss._arguments import PRECISIONS
from tests import forms
from tests.forms import Form
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.cuda


def make(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 1.4 * torch.randn(rows, columns, generator=generator)
    return logits.cuda(), torch.randint(0, 34, (rows,), generator=generator).cuda()


def evaluate(logits: Tensor, labels: Tensor, **options: str) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    loss = pair_kl_hinge_loss(logits, labels, **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), grad


# More than one chunk of rows, of few classes and of more; and many classes.
@pytest.mark.parametrize(("rows", "columns"), [(17_000, 10), (17_000, 34), (300, 20_000)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_large_batches_equal_the_cpu(rows: int, columns: int, reduction: str) -> None:
    logits, labels = make(rows, columns)
    expected = evaluate(logits.double().cpu(), labels.cpu(), reduction=reduction)
    tolerance = TOLERANCES[torch.float32]
    # Among 289 million pairs some lie within rounding of the margin: their share of the gradient.
    at_the_kink = 1e-4
    loss, grad = evaluate(logits, labels, reduction=reduction)
    assert_close(loss, expected[0], tolerance.loss)
    assert_close(grad, expected[1], tolerance.grad + at_the_kink)


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "fp32"])
@pytest.mark.parametrize("rows", [1100, 9000])
def test_precisions(rows: int, precision: str) -> None:
    """On tensor cores: other kernels than those of fp32. The emulation knows their accuracy."""
    logits, labels = make(rows, 34)
    expected = evaluate(logits.double().cpu(), labels.cpu(), reduction="none")
    full = evaluate(logits, labels, reduction="none")
    loss, grad = evaluate(logits, labels, reduction="none", precision=precision)
    assert not torch.equal(loss, full[0])
    assert_close(loss, expected[0], 1e-3 if precision == "tf32" else 1e-5)
    # Pairs that are on the wrong side of the margin.
    assert_close(grad, expected[1], 3e-2)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_certain_tiles_equal_the_cpu(scale: float, reduction: str) -> None:
    """Nearly all tiles are inside the margin; or beyond it, or of similar pairs."""
    logits, labels = make(4500, 34)
    logits[torch.arange(4500), labels] += 14.0
    logits *= scale
    expected = evaluate(logits.double().cpu(), labels.cpu(), reduction=reduction)
    loss, grad = evaluate(logits, labels, reduction=reduction)
    tolerance = TOLERANCES[torch.float32]
    assert_close(loss, expected[0], tolerance.loss)
    assert_close(grad, expected[1], tolerance.grad)


# Two launches; tiles; a few tiles with the classes in parts; and tiles of which some are certain.
SIZES = [(130, 34), (130, 70), (70, 2000), (4100, 34)]
FORMS = [
    Form(70, 10, torch.float32, levels=3, ignored="some", weighted="level sample"),
    Form(70, 70, torch.float32, ref_rows=67, levels=2, weighted="kind sample ref balance"),
    Form(70, 10, torch.float32, similarity="int8", symmetric=False, weighted="balance"),
]


def capture(
    run: Callable[[], tuple[Tensor, ...]],
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the warm-up that torch asks for
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    return graph, captured


@contextmanager
def no_synchronization() -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_captured_in_a_graph(rows: int, columns: int, reduction: str) -> None:
    logits, labels = make(rows, columns)
    other_logits, other_labels = make(rows, columns, seed=1)
    graph, captured = capture(lambda: evaluate(logits, labels, reduction=reduction))
    logits.copy_(other_logits)
    labels.copy_(other_labels)
    for _ in range(2):
        graph.replay()
        for replayed, plain in zip(
            captured, evaluate(other_logits, other_labels, reduction=reduction), strict=True
        ):
            assert torch.equal(replayed, plain)


def gradients(tensors: dict[str, Tensor], batch: forms.Batch, reduction: str) -> tuple[Tensor, ...]:
    """The loss, and its gradient in the logits and in those of the reference set."""
    given = dict(tensors)
    leaves = [name for name in ("logits", "ref_logits") if name in given]
    for name in leaves:
        given[name] = given[name].detach().requires_grad_()
    loss = forms.call(given, **batch.options, reduction=reduction)
    return loss.detach(), *torch.autograd.grad(loss.sum(), [given[name] for name in leaves])


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_every_form_is_captured_and_never_waits(form: Form, reduction: str) -> None:
    batch = forms.make(form)
    tensors = {name: x.detach().cuda() for name, x in batch.tensors.items()}
    expected = gradients(tensors, batch, reduction)
    with no_synchronization():
        again = gradients(tensors, batch, reduction)
    graph, captured = capture(lambda: gradients(tensors, batch, reduction))
    graph.replay()
    for ours in (again, captured):
        for tensor, plain in zip(ours, expected, strict=True):
            assert torch.equal(tensor, plain)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_never_waits_for_the_gpu(rows: int, columns: int) -> None:
    logits, labels = make(rows, columns)
    with no_synchronization():
        for reduction in ("mean", "sum", "none"):
            evaluate(logits, labels, reduction=reduction)


def test_runs_on_the_current_stream() -> None:
    logits, labels = make(4096, 34)
    expected = evaluate(logits, labels)
    torch.cuda.synchronize()
    late = torch.zeros_like(logits)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # some hundredths of a second, which work elsewhere overtakes
        late.copy_(logits)
        result = evaluate(late, labels)
    stream.synchronize()
    for ours, plain in zip(result, expected, strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_device_of_the_logits() -> None:
    logits, labels = make(130, 34)
    with torch.cuda.device(0):
        result = evaluate(logits.to("cuda:1"), labels.to("cuda:1"))
    assert all(tensor.device == torch.device("cuda:1") for tensor in result)
    for ours, plain in zip(result, evaluate(logits, labels), strict=True):
        assert_close(ours, plain.cpu().numpy(), 1e-6)


@pytest.mark.parametrize(("rows", "columns", "megabytes"), [(50_000, 10, 330), (131_072, 34, 560)])
def test_memory_is_linear_in_the_rows(rows: int, columns: int, megabytes: int) -> None:
    logits, labels = make(rows, columns)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    evaluate(logits, labels)
    assert torch.cuda.max_memory_allocated() - before < megabytes * 1e6
