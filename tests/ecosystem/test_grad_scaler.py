"""Under torch.amp's GradScaler."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pairloss
from tests import truth
from tests.tolerances import assert_close


@pytest.mark.parametrize(("reduction", "scale"), [("mean", 2.0**12), ("sum", 4.0)])
def test_a_scaled_step_is_the_plain_one(reduction: str, scale: float, device: torch.device) -> None:
    """float16 logits and a scaled loss: after unscaling, the gradient of a float32 step."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 5).to(device), torch.arange(64).to(device) % 3
    grads = []
    for scaled in (False, True):
        torch.manual_seed(1)
        layer = nn.Linear(5, 4).to(device)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device.type, init_scale=scale, enabled=scaled)
        with torch.autocast(device.type, torch.float16, enabled=scaled):
            logits = layer(inputs)
            assert logits.dtype == (torch.float16 if scaled else torch.float32)
            loss = pairloss.pair_kl_hinge_loss(logits, labels, reduction=reduction)
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        grads.append(layer.weight.grad.clone())
        scaler.step(optimizer)
        scaler.update()
    assert_close(grads[1], grads[0].cpu().numpy(), 2e-3)


def test_gradients_below_float16_survive(device: torch.device) -> None:
    """The scale comes in before the gradient is rounded to float16."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(129, 500, generator=generator) * 1e-3).half()
    labels = torch.zeros(129, dtype=torch.int64)
    expected = truth.evaluate(logits.double().numpy(), labels.numpy(), 2.0).grad("both", "mean")
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16)
    leaf = logits.to(device).requires_grad_()
    scaler.scale(pairloss.pair_kl_hinge_loss(leaf, labels.to(device))).backward()
    assert (torch.from_numpy(expected).half() == 0).double().mean() > 0.3
    assert_close(leaf.grad, expected * 2.0**16, 2e-3)


def test_an_overflow_skips_the_step(device: torch.device) -> None:
    layer = nn.Linear(5, 4).to(device)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**40)
    logits = layer(torch.randn(16, 5, device=device)).half()
    loss = pairloss.pair_kl_hinge_loss(logits, torch.arange(16, device=device) % 3)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(layer.weight, before)
    assert scaler.get_scale() == 2.0**39
