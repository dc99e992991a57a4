"""One training loop for every loss, with an exact resume."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import pairloss
from models import checkpoint
from models.data import Split

# A loss of (outputs, labels), and named figures worth a curve.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
Record = dict[str, float]

# Looking at a loss makes the CPU wait for a GPU, so it is done only this often (in steps).
CHECK_EVERY = 10
# The paper's milestones and its number of epochs on CIFAR10 (Table 6).
PAPER_MILESTONES, PAPER_EPOCHS = (25, 50, 75), 95


class NonFiniteLossError(Exception):
    """The loss became NaN or infinite; the message says where, and what the losses before were."""


@dataclass(frozen=True)
class Recipe:
    """SGD as in the paper's Tables 6-10; at each milestone ``lr`` is multiplied by a factor."""

    epochs: int
    batch_size: int
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = ()
    lr_factor: float = 0.5


def scaled_milestones(epochs: int) -> tuple[int, ...]:
    """The paper's milestones (25, 50 and 75 of 95 epochs) for another number of epochs."""
    return tuple(sorted({round(m * epochs / PAPER_EPOCHS) for m in PAPER_MILESTONES} - {0}))


def cross_entropy(outputs: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective of classification."""
    return functional.cross_entropy(outputs, labels), {}


@dataclass(frozen=True)
class PairObjective:
    """The pair loss on the outputs: labels only say which pairs are similar.

    ``gradient`` is by default that of Hsu & Kira's code, through the second argument of KL only.
    The paper follows their implementation, and it trains better: with the exact gradient
    (``"both"``) about every second run ends with two classes under one output, since different
    mixtures of outputs can also be a margin apart.
    """

    margin: float = 2.0
    gradient: str = "second"
    impl: str = "auto"

    def __call__(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, stats = pairloss.pair_kl_hinge_loss(
            outputs,
            labels,
            margin=self.margin,
            gradient=self.gradient,
            return_stats=True,
            impl=self.impl,
        )
        return loss, {
            "active_fraction": stats.active_fraction,
            "similar_loss": stats.similar_loss,
            "dissimilar_loss": stats.dissimilar_loss,
        }


def train(
    model: nn.Module,
    data: Split,
    objective: Objective,
    recipe: Recipe,
    *,
    seed: int,
    evaluate: Callable[[nn.Module], Record],
    checkpoint_path: Path,
    settings: dict[str, Any],
    resume: bool = False,
    title: str = "training",
) -> list[Record]:
    """Train ``model`` in place; returns one record per epoch.

    A checkpoint is written before the first epoch and after each one. That is the point a resumed
    run goes on from, since weights caught in the middle of a step belong to no run. Every epoch
    draws its random numbers from a seed of its own, so on the CPU (with the same number of
    threads) a resumed run ends in the same bits as one left alone.

    Args:
        evaluate: called after each epoch; its figures join the epoch's record.
        settings: what else (beside recipe and seed) makes the run what it is; a checkpoint with
            other settings is refused.
        resume: go on from ``checkpoint_path`` where it exists.

    Raises:
        NonFiniteLossError: the checkpoint of the last good epoch stays.
        CheckpointError: ``resume`` with a checkpoint that does not fit.
    """
    device = data.labels.device
    settings = {**settings, "seed": seed, **asdict(recipe), "milestones": list(recipe.milestones)}
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, list(recipe.milestones), recipe.lr_factor
    )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    history: list[Record] = []

    def save() -> None:
        states = {name: part.state_dict() for name, part in parts.items()}
        checkpoint.save(checkpoint_path, {"settings": settings, "history": history, **states})

    if resume and checkpoint_path.exists():
        state = checkpoint.load(checkpoint_path, settings, device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        history = state["history"]
    else:
        save()

    steps = -(-len(data) // recipe.batch_size)
    with tqdm(
        desc=title,
        total=recipe.epochs * steps,
        initial=len(history) * steps,
        unit="step",
        dynamic_ncols=True,
        disable=None,  # no bar in a log file
    ) as bar:
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            torch.manual_seed(seed * 100_003 + epoch)
            started = time.perf_counter()
            record: Record = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}
            batches = data.shuffled_batches(recipe.batch_size)
            record |= train_epoch(model, optimizer, objective, batches, epoch, bar)
            record["seconds"] = time.perf_counter() - started
            scheduler.step()
            record |= evaluate(model)
            history.append(record)
            save()
            if epoch % max(1, recipe.epochs // 5) == 0 or epoch == recipe.epochs:
                bar.write(f"{title}: epoch {epoch}/{recipe.epochs}, {_describe(record)}")
    return history


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batches: Iterable[tuple[Tensor, Tensor]],
    epoch: int,
    bar: tqdm[Any],
) -> Record:
    """One pass over ``batches``; the loss and the objective's figures, averaged over rows."""
    model.train()
    sums: dict[str, Tensor | float] = defaultdict(float)
    rows = 0
    recent: deque[Tensor] = deque(maxlen=CHECK_EVERY)
    step = 0
    for step, (images, labels) in enumerate(batches, start=1):
        loss, figures = objective(model(images), labels[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        rows += len(labels)
        for name, value in {"loss": loss, **figures}.items():
            sums[name] += len(labels) * value.detach()
        recent.append(loss.detach())
        if step % CHECK_EVERY == 0:
            bar.set_postfix(epoch=epoch, loss=_last_if_finite(recent, epoch, step), refresh=False)
            bar.update(CHECK_EVERY)
    if step:
        _last_if_finite(recent, epoch, step)
    bar.update(step % CHECK_EVERY)
    return {name: float(value) / rows for name, value in sums.items()}


def _last_if_finite(losses: Iterable[Tensor], epoch: int, step: int) -> float:
    """The last of the latest losses, the one of ``step``, when all of them are finite."""
    values = torch.stack(list(losses))
    finite = values.isfinite()
    if not finite.all():
        first = int(finite.int().argmin())
        seen = ", ".join(f"{value:.4g}" for value in values[: first + 1].tolist())
        at = step - len(values) + first + 1
        raise NonFiniteLossError(
            f"the loss is {values[first]:.4g} at epoch {epoch}, step {at}; the latest losses "
            f"were {seen}. A lower --lr may help."
        )
    return float(values[-1])


def _describe(record: Record) -> str:
    hidden = ("epoch", "lr", "seconds", "similar_loss", "dissimilar_loss")
    figures = [
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in record.items()
        if name not in hidden
    ]
    return ", ".join([*figures, f"{record['seconds']:.1f} s"])
