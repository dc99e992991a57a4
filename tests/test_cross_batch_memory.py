"""The memory bank: against a plain list of rows, over its life."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pairloss import CrossBatchMemory, PairKLHingeLoss, pair_kl_hinge_loss

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = (5, 3, 0, 4, 12, 7)  # of batches; the fifth does not fit into the memory of 10 rows


def batch(rows: int, seed: int, levels: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, levels) if levels else (rows,)
    logits = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, 3, shape, generator=generator)


def make_memory(**options: object) -> CrossBatchMemory:
    options = {"size": 10, "columns": 4, **options}
    return CrossBatchMemory(PairKLHingeLoss(margin=1.0), **options).double()


@pytest.mark.parametrize("levels", [0, 2])
def test_equals_a_list_of_rows(levels: int, device: torch.device) -> None:
    memory = make_memory(levels=levels, memory_weight=0.7, warm_up=2).to(device)
    rows, row_labels = torch.zeros(0, 4).double(), torch.zeros((0, levels) if levels else 0).long()
    for step, size in enumerate(SIZES):
        logits, labels = batch(size, step, levels)
        on_device = logits.detach().to(device).requires_grad_()
        loss = memory(on_device, labels.to(device))
        (grad,) = torch.autograd.grad(loss, on_device)
        expected = pair_kl_hinge_loss(logits, labels, margin=1.0)
        if step >= 2:
            of_memory = pair_kl_hinge_loss(logits, labels, rows, row_labels, margin=1.0)
            assert of_memory > 0 or size == 0
            expected = expected + 0.7 * of_memory
        torch.testing.assert_close(loss.cpu(), expected)
        (expected_grad,) = torch.autograd.grad(expected, logits)
        torch.testing.assert_close(grad.cpu(), expected_grad)
        rows = torch.cat([rows, logits.detach()])[-10:]
        row_labels = torch.cat([row_labels, labels])[-10:]
        # FIFO: the same rows, wherever they stand.
        kept = memory.logits[: len(rows)] if len(rows) < 10 else memory.logits
        assert sorted(kept.tolist()) == sorted(rows.tolist())


def test_evaluation_does_not_remember() -> None:
    memory = make_memory()
    memory(*batch(6, 0))
    memory.eval()
    before = copy.deepcopy(memory.state_dict())
    values = [memory(*batch(4, 1)) for _ in range(2)]
    assert torch.equal(*values)
    assert all(torch.equal(x, before[name]) for name, x in memory.state_dict().items())
    # It still looks.
    assert values[0] > pair_kl_hinge_loss(*batch(4, 1), margin=1.0)


def test_state_dict_goes_on_where_it_stopped() -> None:
    one = make_memory(warm_up=2)
    for step in range(3):
        one(*batch(4, step))
    other = make_memory(warm_up=2)
    other.load_state_dict(one.state_dict())
    for step in range(3, 6):
        assert torch.equal(one(*batch(4, step)), other(*batch(4, step)))
    one.reset()
    fresh = make_memory(warm_up=2)
    for step in range(3):
        assert torch.equal(one(*batch(4, step)), fresh(*batch(4, step)))


def test_backward_after_the_memory_has_changed() -> None:
    """reduction "none" computes its gradient in the backward: from what the memory was."""
    memory = CrossBatchMemory(PairKLHingeLoss(reduction="none"), size=10, columns=4).double()
    memory(*batch(8, 0))
    logits, labels = batch(6, 1)
    rows, row_labels = memory.logits[:8].clone(), memory.labels[:8].clone()
    loss = memory(logits, labels)
    memory(*batch(10, 2))
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    expected = pair_kl_hinge_loss(logits, labels, reduction="sum") * 2
    expected = expected + pair_kl_hinge_loss(logits, labels, rows, row_labels, reduction="sum")
    torch.testing.assert_close(grad, torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_remembered_in_the_dtype_of_the_memory(
    dtype: torch.dtype,
) -> None:
    memory = CrossBatchMemory(PairKLHingeLoss(), size=10, columns=4)
    for step in range(3):
        logits, labels = batch(4, step)
        loss = memory(logits.to(dtype), labels)
        assert loss.dtype == memory.logits.dtype == torch.float32
    loss.backward()
    assert logits.grad.isfinite().all()


def test_compiles_once() -> None:
    torch._dynamo.reset()
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    plain, compiled = make_memory(warm_up=1), make_memory(warm_up=1)
    step = torch.compile(compiled, fullgraph=True, backend=backend)
    for seed in range(4):
        torch.testing.assert_close(step(*batch(4, seed)), plain(*batch(4, seed)))
    assert graphs == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, ValueError, "size: expected a value >= 1, got 0"),
        ({"columns": 2.0}, TypeError, "columns: expected an int, got float"),
        ({"warm_up": -1}, ValueError, "warm_up: expected a value >= 0"),
        ({"memory_weight": -0.5}, ValueError, "memory_weight: expected a finite value"),
        ({"criterion": torch.nn.MSELoss()}, TypeError, "criterion: expected a PairKLHingeLoss"),
        ({"criterion": PairKLHingeLoss(return_stats=True)}, ValueError, "return_stats=False"),
    ],
)
def test_bad_arguments(options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        CrossBatchMemory(**{"criterion": PairKLHingeLoss(), "size": 10, "columns": 4, **options})
