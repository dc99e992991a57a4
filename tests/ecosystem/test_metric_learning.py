"""As a loss of pytorch-metric-learning, the real package."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pairloss

pml = pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import losses, miners, reducers, regularizers  # noqa: E402
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper  # noqa: E402

from pairloss.metric_learning import PairKLHingeLoss  # noqa: E402


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 6, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(24) % 4


def check(actual: Tensor, expected: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(actual, expected)
    losses = 1.7 * actual, 1.7 * expected
    grads = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in losses]
    torch.testing.assert_close(*grads)


def test_the_plain_module_has_its_convention(logits: Tensor, labels: Tensor) -> None:
    """loss(embeddings, labels) is that of any module here."""
    criterion = pairloss.PairKLHingeLoss()
    check(criterion(logits, labels), pairloss.pair_kl_hinge_loss(logits, labels), logits)


def test_options(logits: Tensor, labels: Tensor) -> None:
    options = {"gradient": "second", "balance": "pairs", "similar_weight": 0.3}
    expected = pairloss.pair_kl_hinge_loss(logits, labels, margin=0.7, **options)
    check(PairKLHingeLoss(0.7, **options)(logits, labels), expected, logits)
    labels[::3] = -1
    expected = pairloss.pair_kl_hinge_loss(logits, labels, ignore_index=-1)
    check(PairKLHingeLoss(ignore_index=-1)(logits, labels), expected, logits)
    with pytest.raises(ValueError, match="margin: expected"):
        PairKLHingeLoss(-1.0)


def test_reference_set(logits: Tensor, labels: Tensor) -> None:
    ref, ref_labels = torch.randn(9, 6).double(), torch.arange(9) % 4
    expected = pairloss.pair_kl_hinge_loss(logits, labels, ref, ref_labels)
    check(PairKLHingeLoss()(logits, labels, ref_emb=ref, ref_labels=ref_labels), expected, logits)


def test_reducers_get_rows(logits: Tensor, labels: Tensor) -> None:
    rows = pairloss.pair_kl_hinge_loss(logits, labels, reduction="none")
    for reducer, expected in (
        (reducers.MeanReducer(), rows.mean()),
        (reducers.SumReducer(), rows.sum()),
        (reducers.ThresholdReducer(low=50.0), rows[rows > 50.0].mean()),
        (reducers.DoNothingReducer(), None),
    ):
        result = PairKLHingeLoss(reducer=reducer)(logits, labels)
        if expected is None:
            torch.testing.assert_close(result["loss"]["losses"], rows)
        else:
            check(result, expected, logits)
    assert 0 < (rows > 50.0).sum() < len(rows)


def test_miners_choose_the_pairs(logits: Tensor, labels: Tensor) -> None:
    a = torch.tensor([0, 0, 1]), torch.tensor([4, 8, 5]), torch.tensor([0]), torch.tensor([1])
    pairs = torch.tensor([[0, 4], [0, 8], [1, 5], [0, 1]])
    similar = torch.tensor([True, True, True, False])
    expected = pairloss.pair_kl_hinge_loss_from_pairs(logits, pairs, similar)
    check(PairKLHingeLoss()(logits, labels, a), expected, logits)

    every = miners.PairMarginMiner(pos_margin=-1e9, neg_margin=1e9)(logits, labels)
    expected = pairloss.pair_kl_hinge_loss(logits, labels)
    check(PairKLHingeLoss()(logits, labels, every), expected, logits)

    triplets = miners.TripletMarginMiner(margin=1e9)(logits, labels)
    assert len(triplets) == 3
    assert PairKLHingeLoss()(logits, labels, triplets) > 0


def test_a_regularizer_is_added(logits: Tensor, labels: Tensor) -> None:
    loss = PairKLHingeLoss(
        embedding_regularizer=regularizers.LpRegularizer(),
        embedding_reg_weight=0.5,
        reducer=reducers.MultipleReducers(
            {"loss": reducers.SumReducer(), "embedding_reg_loss": reducers.MeanReducer()}
        ),
    )
    expected = pairloss.pair_kl_hinge_loss(logits, labels, reduction="sum") * 2
    check(loss(logits, labels), expected + 0.5 * logits.norm(dim=1).mean(), logits)


def test_what_is_refused(logits: Tensor, labels: Tensor) -> None:
    """In words, by the package or by us, never a wrong number."""
    with pytest.raises(TypeError, match="must extend BaseMetricLossFunction"):
        DistributedLossWrapper(pairloss.PairKLHingeLoss())
    for loss in (pairloss.PairKLHingeLoss(), PairKLHingeLoss()):
        with pytest.raises(Exception, match="CrossBatchMemory not supported for PairKLHingeLoss"):
            losses.CrossBatchMemory(loss, 6)
    mined = tuple(torch.tensor([0]) for _ in range(4))
    with pytest.raises(ValueError, match="indices_tuple: expected None beside ref_emb"):
        PairKLHingeLoss()(logits, labels, mined, ref_emb=logits + 1, ref_labels=labels)
    with pytest.raises(ValueError, match="labels: expected a Tensor without indices_tuple"):
        PairKLHingeLoss()(logits)


def test_distributed_loss_wrapper_of_one_process(logits: Tensor, labels: Tensor) -> None:
    """Several processes: tests/distributed."""
    wrapped = DistributedLossWrapper(PairKLHingeLoss())
    with pytest.warns(UserWarning, match="non-distributed"):
        check(wrapped(logits, labels), pairloss.pair_kl_hinge_loss(logits, labels), logits)
