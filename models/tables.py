"""A whole table of the paper: ``python -m models.tables --table 3 --data cifar10``.

The same command goes on where it was stopped; tables in the same folder share their runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from models import cli, distributed, paper
from models.data import DATASETS
from models.experiment import Experiment
from models.recipe import RECIPE_VALUES

FIXED = ("task", "data", "variant", "loss_weights", "seed")  # by the row, or options of their own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)

    def body() -> None:
        like = args.like or ("cifar10" if args.data in paper.LIKE_CIFAR10 else "birdsnap34")
        experiment = Experiment(
            rows=tuple(args.rows or paper.rows(args.table, like, extras=args.extras)),
            like=like,
            overrides=cli.recipe_values(args),
            seeds=tuple(range(args.seeds)),
            out=args.out / args.data,
            command=cli.command("models.tables", arguments),
            checkpoint_every=args.checkpoint_every,
            keep_weights=args.keep_weights,
        )
        device = cli.device_of(args)
        with distributed.process_group(device):
            _, recipe = paper.recipes(paper.ROWS["ce"], like, experiment.overrides, 0)
            experiment.train(cli.load_data(recipe, args, device))
            if distributed.rank() == 0:
                nmi = "nmi" if args.nmi == "geometric" else "nmi_arithmetic"
                folder = experiment.out / f"table{args.table}"
                page = experiment.write(folder, f"Table {args.table}", nmi, args.tsne_points)
                print(page.text())
                print(f"\n{folder / 'report.html'} shows it all")

    return cli.guarded(body, "models.tables", arguments, resume=())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m models.tables",
        description="Train every row of one of the paper's tables with several seeds, and show it "
        "beside the paper's. Goes on where it was stopped.",
    )
    add = parser.add_argument
    add("--table", type=int, choices=sorted(paper.TABLES), default=3, help="default: 3")
    add("--data", choices=DATASETS, default="cifar10", help="default: cifar10")
    seeds = "0 to N - 1; default: 5, as in the paper"
    add("--seeds", type=cli.at_least(1), default=5, metavar="N", help=seeds)
    add("--rows", nargs="+", choices=paper.ROWS, metavar="ROW", help="only these: %(choices)s")
    add(
        "--extras",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also rows that are not in the paper: cross-entropy for double the epochs, and on "
        "Birdsnap34 A with the others' batch size; default: yes",
    )
    add(
        "--like",
        choices=list(paper.FIGURES),
        help="whose recipes; default: CIFAR10's for small images, else Birdsnap34's",
    )
    add("--nmi", choices=["geometric", "arithmetic"], default="geometric", help="in the tables")
    add("--keep-weights", action="store_true", help="of rows that have ended")
    cli.add_recipe_options(parser, [name for name in RECIPE_VALUES if name not in FIXED])
    cli.add_run_options(parser, "runs/tables")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
