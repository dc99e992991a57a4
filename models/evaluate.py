"""Score an ended run again: ``python -m models.evaluate runs/clustering``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from models import cli, run, summary
from models.files import write_text
from models.recipe import DATA_VALUES
from models.scores import final_scores, predict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        "python -m models.evaluate",
        description="Score the final weights of an ended run on its own data, or on another "
        "data set with the same classes.",
    )
    parser.add_argument("folder", type=Path, help="of the run")
    cli.add_recipe_options(parser, DATA_VALUES)
    cli.add_run_options(parser, "runs/evaluation")
    args = parser.parse_args(arguments)

    def body() -> None:
        recipe = run.read_recipe(args.folder).with_values(imagenet="", **cli.recipe_values(args))
        known = next(iter(run.read_results(args.folder)["data"]["levels"].values()))
        data = cli.load_data(recipe, args, cli.device_of(args))
        data = data.with_classes(tuple(known))
        network = run.build(recipe, data)
        run.load_weights(network, args.folder)
        outputs = predict(network, data.test)
        scores = asdict(final_scores(network, data, outputs, clusters=recipe.clusters))
        print(summary.as_text(summary.scores_table(scores)))
        write_text(args.out / "scores.json", json.dumps(scores, indent=1) + "\n")

    return cli.guarded(body, "models.evaluate", arguments, resume=None)


if __name__ == "__main__":
    sys.exit(main())
