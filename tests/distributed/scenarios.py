"""What the ranks of test_distributed.py do, and the global batches that they share.

python -m tests.distributed.scenarios STORE RANK WORLD FOLDER runs all of it on one rank, in groups
of 1, 2, ... ranks, and saves what it got.
"""

from __future__ import annotations

import importlib.util
import sys
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pairloss
import pairloss.distributed

# How the rows are shared out: unequal, and none at all for some.
SPLITS = {1: [13], 2: [9, 4], 3: [5, 0, 8], 4: [4, 6, 0, 3]}
METHODS = ("gather", "ring")


class Scenario(NamedTuple):
    options: dict[str, Any] = {}
    levels: int = 0
    sample_weights: bool = False
    dtype: torch.dtype = torch.float64
    ignored: float = 0.2
    rows: int = 13
    scale: float = 1.2

    def batch(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The global one, the same on every rank: logits, labels, sample weights."""
        generator = torch.Generator().manual_seed(3)
        logits = torch.randn(13, 5, generator=generator, dtype=torch.float64) * self.scale
        labels = torch.randint(0, 3, (13, max(self.levels, 1)), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < self.ignored] = -100
        weights = torch.rand(13, generator=generator, dtype=torch.float64) + 0.2
        full = torch.float64 if self.dtype == torch.float64 else torch.float32
        return (
            logits.to(self.dtype),
            labels if self.levels else labels[:, 0],
            weights.to(full) if self.sample_weights else None,
        )


SCENARIOS = {
    "mean": Scenario(),
    "sum": Scenario({"reduction": "sum", "margin": 0.7}),
    "second": Scenario({"gradient": "second"}),
    "float32": Scenario(dtype=torch.float32),
    "bfloat16": Scenario(dtype=torch.bfloat16),
    "levels": Scenario({"level_weights": (0.3, 1.7)}, levels=2),
    "balance": Scenario({"balance": "pairs"}, levels=2),
    "weights": Scenario(
        {"similar_weight": 0.4, "dissimilar_weight": 1.7, "balance": "pairs"}, sample_weights=True
    ),
    "all ignored": Scenario(ignored=1.1),
    "one level": Scenario(levels=1, sample_weights=True),
}


def local_rows(x: Tensor | None, rank: int, world: int) -> Tensor | None:
    return None if x is None else x.split(SPLITS[world])[rank]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5)).double()


def run_scenario(
    scenario: Scenario, method: str, rank: int, world: int, group: dist.ProcessGroup
) -> dict[str, Tensor]:
    logits, labels, weights = (local_rows(x, rank, world) for x in scenario.batch())
    leaf = logits.clone().requires_grad_()
    loss, stats = pairloss.distributed.pair_kl_hinge_loss(
        leaf,
        labels,
        sample_weights=weights,
        return_stats=True,
        group=group,
        method=method,
        averaged_gradients=False,
        **scenario.options,
    )
    upstream = torch.tensor(-1.7, dtype=loss.dtype)
    (grad,) = torch.autograd.grad(loss, leaf, upstream)
    with torch.no_grad():
        value = pairloss.distributed.pair_kl_hinge_loss(
            leaf, labels, sample_weights=weights, group=group, method=method, **scenario.options
        )
    assert loss.requires_grad
    assert not value.requires_grad
    results = {"loss": loss.detach(), "value": value, "grad": grad}
    return {**results, "stats": torch.stack(stats)}


def run_ddp(method: str, rank: int, world: int, group: dist.ProcessGroup) -> dict[str, Tensor]:
    """Two steps of training; the gradients of the first, and the loss of each."""
    logits, labels, _ = (local_rows(x, rank, world) for x in Scenario().batch())
    wrapped = DistributedDataParallel(model(), process_group=group)
    criterion = pairloss.distributed.PairKLHingeLoss(group=group, method=method)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.3)
    results = {}
    for step in range(2):
        optimizer.zero_grad()
        loss = criterion(wrapped(logits), labels)
        loss.backward()
        results[f"loss {step}"] = loss.detach()
        for name, parameter in wrapped.module.named_parameters():
            results.setdefault(name, parameter.grad.clone())
        optimizer.step()
    return results


def run_metric_learning(rank: int, world: int) -> dict[str, Any]:
    """pytorch-metric-learning's own wrapper, which takes the default group and equal batches."""
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    from pairloss.metric_learning import PairKLHingeLoss

    rows = 12 // world
    logits, labels, _ = Scenario().batch()
    here = slice(rank * rows, (rank + 1) * rows)
    leaf = logits[here].clone().requires_grad_()
    loss = DistributedLossWrapper(PairKLHingeLoss())(leaf, labels[here])
    loss.backward()
    message = ""
    try:
        DistributedLossWrapper(PairKLHingeLoss(), efficient=True)(leaf, labels[here])
    except ValueError as error:
        message = str(error)
    return {"loss": loss.detach(), "grad": leaf.grad, "efficient": message}


def disagreement(rank: int, world: int, group: dist.ProcessGroup) -> dict[str, str]:
    """What each rank is told if they do not agree."""
    messages = {}
    odd = rank == 0
    cases = {
        "columns": (torch.randn(2, 4 if odd else 5), torch.zeros(2).long(), None),
        "dtype": (torch.randn(2, 5).to(torch.float64 if odd else torch.float32), [0, 1], None),
        "levels": (torch.randn(2, 5), torch.zeros(2, 2 if odd else 1).long(), None),
        "sample_weights": (torch.randn(2, 5), [0, 1], torch.ones(2) if odd else None),
    }
    for name, (logits, labels, weights) in cases.items():
        try:
            pairloss.distributed.pair_kl_hinge_loss(
                logits, torch.as_tensor(labels), sample_weights=weights, group=group
            )
        except ValueError as error:
            messages[name] = str(error)
    return messages


def main(store: str, rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=300),
    )
    results: dict[Any, Any] = {}
    for size in range(1, world + 1):
        # The last ranks, so that a rank's number in the group is not its global one.
        members = list(range(world - size, world))
        group = dist.new_group(members)
        if rank not in members:
            continue
        place = members.index(rank)
        for method in METHODS:
            for name, scenario in SCENARIOS.items():
                results[size, method, name] = run_scenario(scenario, method, place, size, group)
            results[size, method, "ddp"] = run_ddp(method, place, size, group)
        results[size, "disagreement"] = disagreement(place, size, group)
    if importlib.util.find_spec("pytorch_metric_learning") is not None:
        results["metric learning"] = run_metric_learning(rank, world)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
