"""loss_and_grad, and the encoder in chunks that is built on it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from pairloss import loss_and_grad, pair_kl_hinge_loss
from tests import forms
from tests.forms import Form
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = (
    Form(),
    Form(dtype=torch.float32, levels=2, weighted="level kind"),
    Form(dtype=torch.float16, weighted="sample balance"),
    Form(ref_rows=21, weighted="ref"),
    Form(rows=0),
)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("gradient", ["both", "second"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_equals_the_truth(form: Form, gradient: str, reduction: str, device: torch.device) -> None:
    batch = forms.make(form)
    tensors = {name: x.detach().to(device) for name, x in batch.tensors.items()}
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            loss, grad = loss_and_grad(
                **tensors, **batch.options, gradient=gradient, reduction=reduction
            )
        full = torch.float64 if form.dtype == torch.float64 else torch.float32
        assert loss.dtype == grad.dtype == full
        assert not loss.requires_grad
        assert not grad.requires_grad
        assert_close(loss, batch.truth.loss(reduction), TOLERANCES[full].loss)
        assert_close(grad, batch.truth.grads(gradient, reduction)[0], TOLERANCES[full].grad)


def test_the_caller_s_graph_is_left_alone() -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    labels = torch.arange(6) % 2
    loss, grad = loss_and_grad(logits, labels)
    assert logits.grad is None
    pair_kl_hinge_loss(logits, labels).backward()
    torch.testing.assert_close(logits.grad, grad)
    with pytest.raises(ValueError, match='reduction: expected "mean" or "sum"'):
        loss_and_grad(logits, labels, reduction="none")
    with pytest.raises(TypeError, match="logits: expected a Tensor, got list"):
        loss_and_grad([[0.0]], labels)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "grad_cache.py"
    spec = importlib.util.spec_from_file_location("grad_cache", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("chunk_rows", [1, 7, 40])
def test_chunks_have_the_gradient_of_the_whole_batch(
    chunk_rows: int, example: ModuleType, device: torch.device
) -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 4)).double().to(device)
    inputs, labels = torch.randn(40, 5).double().to(device), torch.arange(40).to(device) % 3
    loss = pair_kl_hinge_loss(encoder(inputs), labels, balance="pairs")
    expected = torch.autograd.grad(loss, list(encoder.parameters()))
    in_chunks = example.backward_in_chunks(encoder, inputs, labels, chunk_rows, balance="pairs")
    torch.testing.assert_close(in_chunks, loss.detach())
    for parameter, wanted in zip(encoder.parameters(), expected, strict=True):
        # The last bias shifts all logits of a class alike: its gradient is rounding.
        assert_close(parameter.grad, wanted.cpu().numpy(), 1e-12, scale=1e-3)


def test_dropout_draws_the_same_in_both_passes(example: ModuleType) -> None:
    """What the encoder gives in the second pass is what the loss was computed from."""
    seen = []

    class Encoder(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(nn.functional.dropout(super().forward(x), 0.5))
            return seen[-1]

    torch.manual_seed(0)
    encoder = Encoder(5, 4)
    example.backward_in_chunks(encoder, torch.randn(12, 5), torch.arange(12) % 2, 4)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0] == 0, seen[1] == 0)
