"""docs/migration.md: L2C's conventions and ours on the same inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pairloss

N, K, MARGIN = 23, 6, 0.9


def l2c_pairs(p: Tensor) -> tuple[Tensor, Tensor]:
    """What PairEnum gives: pair i * N + j is rows j and i."""
    return p.repeat(len(p), 1), p.repeat_interleave(len(p), 0)


def l2c_similarity(labels: Tensor) -> Tensor:
    """What Class2Simi(labels, mode="hinge") gives: (N^2,), 1 or -1."""
    return torch.where(labels[:, None] == labels, 1.0, -1.0).flatten()


def l2c_kcl(first: Tensor, second: Tensor, similarity: Tensor, margin: float) -> Tensor:
    """What KCL(margin) gives, without the 1e-7 that it adds to all probabilities.

    KL(second || first), with no gradient to the second, under torch's HingeEmbeddingLoss.
    """
    second = second.detach()
    divergence = (second * (second.log() - first.log())).sum(1)
    return torch.nn.functional.hinge_embedding_loss(divergence, similarity, margin=margin)


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, K, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(N) % 4


def theirs(logits: Tensor, similarity: Tensor) -> Tensor:
    return l2c_kcl(*l2c_pairs(torch.softmax(logits, 1)), similarity, MARGIN)


def check(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(ours, theirs)
    ours, theirs = 1.7 * ours, 1.7 * theirs
    grads = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (ours, theirs)]
    assert grads[0].abs().max() > 1e-3
    torch.testing.assert_close(*grads)


def test_from_labels(logits: Tensor, labels: Tensor) -> None:
    loss = pairloss.pair_kl_hinge_loss(logits, labels, margin=MARGIN, gradient="second")
    check(loss * (N - 1) / (2 * N), theirs(logits, l2c_similarity(labels)), logits)


def test_from_probabilities(logits: Tensor, labels: Tensor) -> None:
    """Where only the probabilities are at hand."""
    log_p = torch.softmax(logits, 1).log()
    loss = pairloss.pair_kl_hinge_loss(log_p, labels, margin=MARGIN, gradient="second")
    check(loss * (N - 1) / (2 * N), theirs(logits, l2c_similarity(labels)), logits)


def test_from_simi(logits: Tensor) -> None:
    """Any matrix of 1 and -1, also one that is not symmetric: the same entry, the same pair."""
    signs = torch.randint(0, 2, (N, N), generator=torch.Generator().manual_seed(1)) * 2.0 - 1.0
    signs.fill_diagonal_(1.0)  # a row is like itself: 0 in both
    loss = pairloss.pair_kl_hinge_loss_from_similarity(
        logits, signs, margin=MARGIN, gradient="second"
    )
    check(loss * (N - 1) / (2 * N), theirs(logits, signs.flatten()), logits)


def test_from_a_list_of_pairs(logits: Tensor, labels: Tensor) -> None:
    """Every ordered pair is listed: its mean counts the N self pairs, too, and one direction."""
    pairs = torch.cartesian_prod(torch.arange(N), torch.arange(N))
    similar = l2c_similarity(labels) > 0
    loss = pairloss.pair_kl_hinge_loss_from_pairs(
        logits, pairs, similar, margin=MARGIN, gradient="second"
    )
    check(loss * (N - 1) / (2 * N), theirs(logits, l2c_similarity(labels)), logits)


def test_unknown_pairs_are_ignored_here(logits: Tensor, labels: Tensor) -> None:
    """In L2C a 0 adds KL + max(margin - KL, 0): at least the margin, and it pulls far rows near."""
    known = labels != 3
    simi = l2c_similarity(labels).reshape(N, N) * (known[:, None] & known)
    loss = pairloss.pair_kl_hinge_loss_from_similarity(
        logits, simi, margin=MARGIN, gradient="second"
    )
    n = int(known.sum())
    of_known = logits[known]
    expected = theirs(of_known, l2c_similarity(labels[known]))
    check(loss * (n - 1) / (2 * n), expected, logits)
    assert (torch.autograd.grad(loss, logits)[0][~known] == 0).all()

    grad = torch.autograd.grad(theirs(logits, simi.flatten()), logits)[0]
    assert (grad[~known] != 0).any(), "L2C ignores them after all: docs/migration.md is wrong"
    row_without_any = theirs(logits, torch.zeros(N * N).double())
    assert row_without_any >= MARGIN
