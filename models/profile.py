"""What share of a training step the loss takes: ``python -m models.profile``.

On random images of the data set's shape, so that no data is needed. On a CPU the times are CPU
times, so that other programs hardly count; ``OMP_NUM_THREADS=1`` keeps threads that wait for others
from being counted as work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models import cli, run, summary
from models.data import ImageData, Level, MemorySplit
from models.files import write_text
from models.objectives import Objective
from models.recipe import RECIPES, Recipe, load

# (channels, height, width), fine and coarse classes of the paper's data sets.
SHAPES = {"cifar10": ((3, 32, 32), 10, 2), "birdsnap34": ((3, 224, 224), 34, 18)}


@dataclass(frozen=True)
class Share:
    """Median seconds of one training step, and of the loss in it, forward and backward."""

    recipe: str
    batch_size: int
    step: float
    loss: float

    @property
    def percent(self) -> float:
        return 100 * self.loss / self.step


def measure(recipe: Recipe, name: str, device: torch.device, steps: int) -> Share:
    """Time ``steps`` training steps, after some to warm up.

    The step is that of :func:`models.training.train_epoch`, cut at the layers that have a loss: the
    network forward, *the loss forward and backward*, the network backward, SGD.
    """
    data = _random_data(recipe, device)
    network = run.build(recipe, data).train()
    objective = run.objective(recipe)
    optimizer = torch.optim.SGD(network.parameters(), recipe.lr, momentum=recipe.momentum)
    images, labels = next(data.train.batches(recipe.batch_size))
    times = [
        _timed_step(network, objective, optimizer, images, labels, recipe) for _ in range(3 + steps)
    ][3:]
    total, loss = (statistics.median(column) for column in zip(*times, strict=True))
    return Share(name, recipe.batch_size, total, loss)


def _timed_step(
    network: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
) -> tuple[float, float]:
    """Seconds of the whole step, and of the loss alone."""
    layers = [tap.layer for tap in recipe.taps] if recipe.clusters else ["fc3"]
    started = _now(images.device)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.amp):
        outputs = network(images)
        before = _now(images.device)
        cut = {name: outputs[name].detach().requires_grad_() for name in layers}
        loss, _ = objective(cut, labels)
    loss.backward()
    after = _now(images.device)
    optimizer.zero_grad()
    torch.autograd.backward([outputs[name] for name in layers], [cut[name].grad for name in layers])
    optimizer.step()
    return _now(images.device) - started, after - before


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _random_data(recipe: Recipe, device: torch.device) -> ImageData:
    """One batch of random images in the shape of the recipe's data set."""
    shape, fine, coarse = SHAPES[recipe.data]
    if recipe.image_size:
        shape = (shape[0], recipe.image_size, recipe.image_size)
    labels = torch.arange(recipe.batch_size) % fine
    split = MemorySplit(
        torch.randn(recipe.batch_size, *shape), torch.stack((labels, labels * coarse // fine), 1)
    )
    levels = tuple(Level(str(n), tuple(map(str, range(n)))) for n in (fine, coarse))
    return ImageData("random", levels, split, split).to(device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        "python -m models.profile", description="The loss's share of a training step, by recipe."
    )
    known = sorted((path.stem for path in RECIPES.glob("*.toml")), key=_table_number)
    add = parser.add_argument
    add("recipes", nargs="*", choices=[*known, []], metavar="RECIPE", help="default: all")
    add("--steps", type=cli.at_least(1), default=30, help="to take the median of; default: 30")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if any")
    add("--image-size", type=cli.at_least(0), default=0, help="instead of the data set's")
    add("--batch-size", type=cli.at_least(2), help="instead of the recipe's")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    args = parser.parse_args(arguments)

    def body() -> None:
        device = cli.device_of(args)
        values = {"image_size": args.image_size, "amp": args.amp}
        if args.batch_size:
            values["batch_size"] = args.batch_size
        lines = [["", "batch", "step", "loss", "share"]]
        shares = []
        for name in args.recipes or known:
            share = measure(load(name).with_values(**values), name, device, args.steps)
            shares.append(share)
            step, loss = (f"{1e3 * seconds:.2f} ms" for seconds in (share.step, share.loss))
            lines.append([name, str(share.batch_size), step, loss, f"{share.percent:.2f} %"])
        versions = run.versions(device)
        print(summary.as_text(lines))
        print(f"{versions['device']}, {versions['threads']} threads; medians of {args.steps} steps")
        if args.out:
            record = {
                "command": cli.command("models.profile", arguments),
                "versions": versions,
                "shares": [vars(share) for share in shares],
            }
            write_text(args.out, json.dumps(record, indent=1) + "\n")

    return cli.guarded(body, "models.profile", arguments, resume=None)


def _table_number(name: str) -> tuple[str, int]:
    table, _, data = name.partition("-")
    return data, int(table.removeprefix("table"))


if __name__ == "__main__":
    sys.exit(main())
