"""The whole way in one command: train, score, draw and report the paper's warm-start experiment.

Run from a checkout: ``python -m models.demo --help``.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models import data, experiment, plots, report, summary
from models.checkpoint import CheckpointError
from models.files import atomic_write, write_text
from models.training import NonFiniteLossError, PairObjective, Recipe, scaled_milestones


@dataclass(frozen=True)
class Defaults:
    """What a data set is trained with unless the command line says otherwise."""

    epochs: int
    batch_size: int
    halves: bool = True  # the learning rate, at the paper's milestones scaled to the epochs


DEFAULTS = {
    "digits": Defaults(epochs=20, batch_size=32),
    # Five epochs are short of the paper's first milestone, and clusters form until the last.
    "fashion-mnist": Defaults(epochs=5, batch_size=128, halves=False),
    "cifar10": Defaults(epochs=20, batch_size=128),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    try:
        run(args, command=shlex.join(["python", "-m", "models.demo", *arguments]))
    except (data.DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteLossError as error:
        print(f"error: stopped, {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. {_way_on(args.out, arguments)}", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, with each data set's defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m models.demo",
        description="Train LeNet with cross-entropy, with the pair loss (variant A), and with "
        "cross-entropy from the clustering's weights (warm start); write a report.",
    )
    natural, positive = _at_least(int, 1), _at_least(float, 0)

    add = parser.add_argument_group("data").add_argument
    add("--data", choices=list(data.DATASETS), default="digits", help="default: digits")
    add("--data-root", type=Path, default=Path("data"), metavar="DIR", help="default: data")
    add("--download", action="store_true", help="let torchvision fetch a missing data set")

    add = parser.add_argument_group("run").add_argument
    out = Path("runs/demo")
    add("--out", type=Path, default=out, metavar="DIR", help=f"for results; default: {out}")
    add("--resume", action="store_true", help="go on from the checkpoints in --out")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if any")
    add("--seed", type=_at_least(int, 0), default=0, help="of weights and batches; default: 0")
    add("--tsne-points", type=_at_least(int, 10), default=1000, help="in the picture; 1000")

    add = parser.add_argument_group("recipe").add_argument
    epochs = ", ".join(f"{name} {d.epochs}" for name, d in DEFAULTS.items())
    add("--epochs", type=natural, help=f"of each of the three runs; default: {epochs}")
    sizes = ", ".join(f"{name} {d.batch_size}" for name, d in DEFAULTS.items())
    add("--batch-size", type=_at_least(int, 2), help=f"default: {sizes}")
    add("--lr", type=positive, default=0.01, help="learning rate; default: 0.01")
    add(
        "--milestones",
        type=natural,
        nargs="*",
        metavar="EPOCH",
        help="where the learning rate halves; default: the paper's 25, 50, 75 of 95, "
        "scaled; nowhere for fashion-mnist",
    )
    add("--momentum", type=positive, default=0.9, help="default: 0.9")
    add("--weight-decay", type=positive, default=5e-4, help="default: 0.0005")
    add("--margin", type=positive, default=2.0, help="of the pair loss, in nats; default: 2")
    add(
        "--gradient",
        choices=["second", "both"],
        default="second",
        help="of the pair loss: through KL's second argument, as in Hsu & Kira's code (default), "
        "or exact",
    )
    add("--no-batch-norm", action="store_true", help="LeNet without batch normalisation")
    add("--impl", choices=["auto", "fused", "reference"], default="auto", help="of the pair loss")

    args = parser.parse_args(arguments)
    if args.epochs is None:
        args.epochs = DEFAULTS[args.data].epochs
    if args.batch_size is None:
        args.batch_size = DEFAULTS[args.data].batch_size
    if args.milestones is None:
        halves = DEFAULTS[args.data].halves
        args.milestones = scaled_milestones(args.epochs) if halves else ()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no GPU")
    return args


def run(args: argparse.Namespace, command: str) -> None:
    """Train, then write results and pictures into ``args.out``."""
    started = time.perf_counter()
    gpu = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if gpu else "cpu")
    images = data.load(args.data, args.data_root, args.download).to(device)
    sizes = f"{len(images.train)} training and {len(images.test)} test images"
    print(f"{images.title}: {sizes}, on {device}")
    checkpoints = args.out / "checkpoints"
    if not args.resume:
        # Old checkpoints must not be what a later --resume goes on from.
        shutil.rmtree(checkpoints, ignore_errors=True)

    recipe = Recipe(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        milestones=tuple(args.milestones),
    )
    settings = experiment.Experiment(
        data_name=args.data,
        recipe=recipe,
        pair_objective=PairObjective(args.margin, args.gradient, args.impl),
        batch_norm=not args.no_batch_norm,
        seed=args.seed,
    )
    outcome = experiment.run(settings, images, checkpoints, args.resume)
    results = {"command": command, **outcome.results}
    print_tables(results)
    write_outputs(args.out, results, outcome, images, args.tsne_points)
    print(f"\n{args.out / 'report.html'} shows it all ({time.perf_counter() - started:.0f} s)")


def print_tables(results: dict[str, Any]) -> None:
    """Table 1 of the paper, then all scores."""
    print(f"\n{summary.as_text(summary.table_1(results))}")
    print(f"\n{summary.as_text(summary.full_table(results))}")
    print(f"n = {results['data']['test_images']} test images, in percent [95 % Wilson interval]")


def write_outputs(
    out: Path,
    results: dict[str, Any],
    outcome: experiment.Outcome,
    images: data.ImageData,
    tsne_points: int,
) -> None:
    """results.json, the pictures and report.html."""
    seed = results["recipe"]["seed"]
    chosen = torch.randperm(len(images.test), generator=torch.Generator().manual_seed(seed))
    chosen = chosen[:tsne_points]
    points = {
        phase: plots.tsne(outcome.test_outputs[phase][chosen], seed)
        for phase in ("classification", "clustering")
    }
    results["tsne_points"] = len(chosen)
    labels = images.test.labels[:, 0].cpu()[chosen].numpy()
    pictures = {
        "tsne": plots.png(plots.tsne_figure(points, labels, results)),
        "curves": plots.png(plots.curves_figure(results)),
        "pairs": plots.png(plots.pairs_figure(results)),
        "overview": plots.png(plots.overview_figure(points, labels, results), dpi=100),
    }
    for name, content in pictures.items():
        with atomic_write(out / f"{name}.png") as file:
            file.write(content)
    write_text(out / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    write_text(out / "report.html", report.render(results, pictures))


def _way_on(out: Path, arguments: Sequence[str]) -> str:
    """What to do after Ctrl-C."""
    checkpoints = out / "checkpoints"
    if not checkpoints.exists():
        return "Nothing was trained yet."
    again = shlex.join([*(a for a in arguments if a != "--resume"), "--resume"])
    return f"{checkpoints} has every finished epoch; go on with\n  python -m models.demo {again}"


def _at_least(kind: type[int] | type[float], low: int) -> Any:
    """An argparse type: a finite number that is not below ``low``."""

    def convert(text: str) -> int | float:
        number = kind(text)
        if not (number >= low and math.isfinite(number)):
            raise argparse.ArgumentTypeError(f"expected at least {low}, got {text}")
        return number

    convert.__name__ = kind.__name__  # argparse names it in "invalid ... value"
    return convert


if __name__ == "__main__":
    sys.exit(main())
