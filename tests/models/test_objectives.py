"""The pair objective is the weighted sum over its layers, each with its own labels."""

import pytest
import torch

from models.networks import Tap, taps
from models.objectives import PairObjective, cross_entropy
from pairloss import reference


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    sizes = {"fc1": 6, "skip": 6, "fc2": 5, "fc3": 4}
    return {
        name: (3 * torch.randn(12, size, generator=generator)).requires_grad_()
        for name, size in sizes.items()
    }


LABELS = torch.stack((torch.arange(12) % 4, torch.arange(12) % 4 // 2), dim=1)


@pytest.mark.parametrize("variant", "ABCD")
@pytest.mark.parametrize("gradient", ["second", "both"])
def test_the_variants_losses(outputs, variant, gradient):
    chosen = taps(variant)
    loss, _ = PairObjective(chosen, gradient=gradient, margin=1.5)(outputs, LABELS)
    expected = sum(
        tap.weight
        * reference.pair_kl_hinge_loss(
            outputs[tap.layer], LABELS[:, tap.level], gradient=gradient, margin=1.5
        )
        for tap in chosen
    )
    torch.testing.assert_close(loss, expected)
    names = [tap.layer for tap in chosen]
    found = torch.autograd.grad(loss, [outputs[n] for n in names])
    torch.testing.assert_close(found, torch.autograd.grad(expected, [outputs[n] for n in names]))


def test_coarse_labels_are_used_where_the_tap_says_so(outputs):
    fine, _ = PairObjective([Tap("fc1", 0, 1.0)])(outputs, LABELS)
    coarse, _ = PairObjective([Tap("fc1", 1, 1.0)])(outputs, LABELS)
    assert (fine - coarse).abs() > 0.01


def test_figures_are_named_by_layer(outputs):
    loss, figures = PairObjective(taps("B"))(outputs, LABELS)
    assert set(figures) == {
        f"{layer}_{name}"
        for layer in ("fc2", "fc3")
        for name in ("active_fraction", "similar_loss", "dissimilar_loss")
    }
    parts = {
        n: figures[f"{n}_similar_loss"] + figures[f"{n}_dissimilar_loss"] for n in ("fc2", "fc3")
    }
    assert sum(parts.values()).item() == pytest.approx(loss.item(), rel=1e-5)
    alone, _ = PairObjective([Tap("fc3", 0, 1.0)])(outputs, LABELS)
    assert parts["fc3"].item() == pytest.approx(0.8 * alone.item(), rel=1e-5)
    assert 0 < figures["fc3_active_fraction"] < 1


def test_cross_entropy_is_of_the_last_layer_and_the_fine_labels(outputs):
    loss, figures = cross_entropy(outputs, LABELS)
    expected = -outputs["fc3"].log_softmax(1)[torch.arange(12), LABELS[:, 0]].mean()
    torch.testing.assert_close(loss, expected)
    assert figures == {}
