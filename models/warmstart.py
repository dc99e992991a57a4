"""Classify from a clustering's weights: ``python -m models.warmstart --start runs/clustering``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from models import cli
from models.recipe import DATA_VALUES, NETWORK_VALUES, RECIPE_VALUES, Recipe, load
from models.run import read_recipe

KEPT = (*DATA_VALUES, *NETWORK_VALUES)


def warm_start_recipe(recipe: Recipe, clustering: Recipe) -> Recipe:
    """``recipe`` for the network and the data of the run ``clustering``, and with its seed."""
    kept = {name: getattr(clustering, name) for name in (*KEPT, "seed")}
    return recipe.with_values(**kept, imagenet="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        "python -m models.warmstart",
        description="Train a classifier with cross-entropy, from the final weights of an ended "
        "run (all layers, the last one too), on its data and with its seed.",
    )
    default = Path("runs/clustering")
    parser.add_argument(
        "--start", type=Path, default=default, metavar="DIR", help=f"its folder; default: {default}"
    )
    parser.add_argument(
        "--recipe",
        help="a .toml, or a name in models/recipes; default: the paper's Table 6 for the network",
    )
    kept = ("task", "imagenet", *KEPT)
    cli.add_recipe_options(parser, [name for name in RECIPE_VALUES if name not in kept])
    cli.add_run_options(parser, "runs/warm-start")
    parser.add_argument("--resume", action="store_true", help="go on from --out's checkpoint")
    args = parser.parse_args(arguments)

    def body() -> None:
        clustering = read_recipe(args.start)
        paper = "cifar10" if clustering.network == "lenet" else "birdsnap34"
        recipe = warm_start_recipe(load(args.recipe or f"table6-{paper}"), clustering)
        cli.train_and_report(
            recipe.with_values(**cli.recipe_values(args)),
            args,
            cli.command("models.warmstart", arguments),
            start=args.start,
        )

    return cli.guarded(body, "models.warmstart", arguments)


if __name__ == "__main__":
    sys.exit(main())
