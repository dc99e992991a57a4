"""One training loop for every loss, with an exact resume."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models import checkpoint, distributed
from models.data import DataError, Split
from models.objectives import Objective
from models.recipe import Recipe, RecipeError

Record = dict[str, float]

# Looking at a loss makes the CPU wait for a GPU, so it is done only this often (in steps).
CHECK_EVERY = 10


class NonFiniteLossError(Exception):
    """The loss, or an output, became NaN or infinite; the message says where, and what to do."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}. A lower --lr may help.")


def train(
    model: nn.Module,
    data: Split,
    objective: Objective,
    recipe: Recipe,
    *,
    evaluate: Callable[[nn.Module], Record],
    checkpoint_path: Path,
    checkpoint_every: int = 1,
    settings: dict[str, Any] | None = None,
    older: dict[str, Any] | None = None,
    resume: bool = False,
    title: str = "training",
) -> list[Record]:
    """Train ``model`` in place; returns one record per epoch.

    A checkpoint is written before the first epoch and after each one. That is the point a resumed
    run goes on from, since weights caught in the middle of a step belong to no run. Every epoch
    draws its random numbers from a seed of its own, so on the CPU (with the same number of
    threads) a resumed run ends in the same bits as one left alone.

    In several processes (see :mod:`models.distributed`) each trains on its share of every batch,
    and process 0 evaluates and writes.

    Args:
        evaluate: called after each epoch; its figures join the epoch's record.
        checkpoint_every: write one only after every so many epochs, and after the last.
        settings: what else, beside the recipe, makes the run what it is; a checkpoint with other
            settings is refused.
        older: see :func:`models.checkpoint.check_settings`.
        resume: go on from ``checkpoint_path`` where it exists.

    Raises:
        NonFiniteLossError: the checkpoint of the last good epoch stays.
        RecipeError: a batch has not two images for each process.
        CheckpointError: ``resume`` with a checkpoint that does not fit.
        DataError: there is no batch of two images.
    """
    main, processes = distributed.rank() == 0, distributed.world_size()
    if recipe.batch_size < 2 * processes:
        raise RecipeError(
            f"batch_size: expected at least {2 * processes}, two images for each of {processes} "
            f"processes, got {recipe.batch_size}"
        )
    settings = {**recipe.plain(), **(settings or {})}
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
        if main:
            states = {name: part.state_dict() for name, part in parts.items()}
            checkpoint.save(checkpoint_path, {"settings": settings, "history": history, **states})

    if resume and checkpoint_path.exists():
        state = checkpoint.load(checkpoint_path, settings, data.labels.device, older)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        history = state["history"]
    else:
        save()

    if recipe.compile:
        model.compile()  # in place: the weights keep their names
    shared = distributed.shared(model)
    steps = -(-len(data) // recipe.batch_size)
    with tqdm(
        desc=title,
        total=recipe.epochs * steps,
        initial=len(history) * steps,
        unit="step",
        dynamic_ncols=True,
        disable=None if main else True,  # None: no bar in a log file
    ) as bar:
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            torch.manual_seed(recipe.seed * 100_003 + epoch)
            batches = data.shuffled_batches(recipe.batch_size, distributed.rank(), processes)
            # The order of the batches is drawn; dropout is each process's own.
            torch.manual_seed((recipe.seed * 100_003 + epoch) * 1_009 + distributed.rank())
            started = time.perf_counter()
            record: Record = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}
            record |= train_epoch(shared, optimizer, objective, batches, recipe, epoch, bar)
            record["seconds"] = time.perf_counter() - started
            scheduler.step()
            if main:
                record |= evaluate(model)
            history.append(record)
            if epoch % checkpoint_every == 0 or epoch == recipe.epochs:
                save()
            if main and (epoch % max(1, recipe.epochs // 5) == 0 or epoch == recipe.epochs):
                bar.write(f"{title}: epoch {epoch}/{recipe.epochs}, {_describe(record)}")
    distributed.wait_for_all()
    return history


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batches: Iterable[tuple[Tensor, Tensor]],
    recipe: Recipe,
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
        with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.amp):
            loss, figures = objective(model(images), labels)
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
    if step == 0:
        raise DataError(f"batch_size: no batch of {recipe.batch_size} has two images a process")
    _last_if_finite(recent, epoch, step)
    bar.update(step % CHECK_EVERY)
    totals = torch.tensor([*map(float, sums.values()), rows], device=labels.device)
    *over_all, rows_of_all = distributed.sum_over_processes(totals).tolist()
    return {name: total / rows_of_all for name, total in zip(sums, over_all, strict=True)}


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
            f"were {seen}"
        )
    return float(values[-1])


def _describe(record: Record) -> str:
    shown = ("loss", "accuracy", "nmi", "clusters_in_use")
    figures = [f"{n.replace('_', ' ')} {record[n]:.4g}" for n in shown if n in record]
    return ", ".join([*figures, f"{record['seconds']:.1f} s"])
