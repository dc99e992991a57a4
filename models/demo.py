"""The whole way in one command: train, score, draw and report the paper's Table 1.

Run from a checkout: ``python -m models.demo --help``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from models import cli, paper, plots
from models.experiment import Experiment
from models.files import atomic_write
from models.recipe import RECIPE_VALUES

# What a data set is trained with unless the command line says otherwise.
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 20, "batch_size": 16},
    # Five epochs are short of the paper's first milestone, and clusters form until the last.
    "fashion-mnist": {"epochs": 5, "batch_size": 128, "milestones": ()},
    "cifar10": {"epochs": 20, "batch_size": 128},
}
FIXED = ("task", "variant", "loss_weights", "imagenet")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    return cli.guarded(
        lambda: run(args, cli.command("models.demo", arguments)), "models.demo", arguments
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m models.demo",
        description="Train LeNet with cross-entropy, with the pair loss (variant A), and with "
        "cross-entropy from the clustering's weights (warm start); write a report.",
    )
    parser.add_argument(
        "--data", choices=list(DEFAULTS), default="digits", help="default: %(default)s"
    )
    names = [name for name in RECIPE_VALUES if name not in (*FIXED, "data")]
    cli.add_recipe_options(parser, names)
    cli.add_run_options(parser, "runs/demo")
    parser.add_argument("--resume", action="store_true", help="go on from what is in --out")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, command: str) -> None:
    """Train, then write results and pictures into ``args.out``."""
    started = time.perf_counter()
    given = cli.recipe_values(args)
    overrides = {**DEFAULTS[args.data], **given}
    if "epochs" in given and "milestones" not in given:
        overrides.pop("milestones", None)  # the paper's then, scaled
    seed = overrides.pop("seed", 0)
    experiment = Experiment(
        rows=paper.TABLES[1],
        like="cifar10",
        overrides=overrides,
        seeds=(seed,),
        out=args.out,
        command=command,
        checkpoint_every=args.checkpoint_every,
    )
    _, recipe = paper.recipes(paper.ROWS["ce"], "cifar10", overrides, seed)
    images = cli.load_data(recipe, args, cli.device_of(args))
    if not args.resume:
        # Old checkpoints must not be what a later --resume goes on from.
        experiment.forget()
    experiment.train(images)
    page = experiment.write(
        args.out, "Clustering from pairs as a warm start", "nmi", args.tsne_points
    )
    entropy, warm = (experiment.ended(row, "classify")[0] for row in ("ce", "a"))
    clusters = experiment.ended("a", "cluster")[0]
    strip = plots.overview_figure([entropy, clusters], [entropy, clusters, warm], args.tsne_points)
    with atomic_write(args.out / "overview.png") as file:
        file.write(plots.png(strip, dpi=100))
    print(page.text())
    print(f"\n{args.out / 'report.html'} shows it all ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    sys.exit(main())
