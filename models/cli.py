"""What the programs share: their options, one training run each, and how they end."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from models import data, distributed, report
from models.checkpoint import CheckpointError
from models.networks import TITLES, WeightsError
from models.recipe import RECIPE_VALUES, Recipe, RecipeError, load
from models.run import EndedRun, run
from models.training import NonFiniteLossError


def add_recipe_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """An option for each of these values of a recipe; only those that are given override it."""
    group = parser.add_argument_group("recipe", "each overrides what the recipe says")
    for known in fields(Recipe):
        if known.name not in names:
            continue
        kind: Any = type(known.default)
        meta = known.metadata
        given: dict[str, Any] = {"help": meta["help"], "default": argparse.SUPPRESS}
        if kind is bool:
            given["action"] = argparse.BooleanOptionalAction
        elif kind is tuple:
            given |= {"nargs": "*", "type": meta["each"], "metavar": "VALUE"}
        elif meta["choices"]:
            given["choices"] = meta["choices"]
        else:
            given |= {"type": kind, "metavar": "VALUE"}
        group.add_argument("--" + known.name.replace("_", "-"), **given)


def recipe_values(args: argparse.Namespace) -> dict[str, Any]:
    """The values of a recipe that were given on the command line."""
    given = {known.name: vars(args).get(known.name) for known in fields(Recipe)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }


def at_least(smallest: int) -> Callable[[str], int]:
    """The type of an option that is a whole number, no smaller."""

    def whole_number(given: str) -> int:
        if not given.isdecimal() or int(given) < smallest:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {smallest}, got {given!r}"
            )
        return int(given)

    return whole_number


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Where to read and write (by default ``out``), and on what to compute."""
    add = parser.add_argument_group("run").add_argument
    add("--out", type=Path, default=Path(out), metavar="DIR", help=f"for results; default: {out}")
    add("--data-root", type=Path, default=Path("data"), metavar="DIR", help="default: data")
    add("--download", action="store_true", help="let torchvision fetch a missing data set")
    workers = "processes that read image files; default: 2"
    add("--workers", type=at_least(0), default=2, help=workers)
    add("--in-memory", action="store_true", help="read image files once, into memory")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if any")
    add("--checkpoint-every", type=at_least(1), default=1, metavar="EPOCHS", help="default: 1")
    points = "test images in the picture; default: 1000"
    add("--tsne-points", type=at_least(3), default=1000, help=points)


def device_of(args: argparse.Namespace) -> torch.device:
    """The device asked for."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: this PyTorch sees no GPU")
    gpu = args.device != "cpu" and torch.cuda.is_available()
    return distributed.local_device("cuda" if gpu else "cpu")


def load_data(recipe: Recipe, args: argparse.Namespace, device: torch.device) -> data.ImageData:
    """The recipe's data set, on the device."""
    options = recipe.data_options(args.workers, args.in_memory)
    with distributed.main_process_first():
        images = data.load(recipe.data, args.data_root, args.download, options).to(device)
    say(f"{images.title}: {len(images.train)} training, {len(images.test)} test images, {device}")
    return images


def say(text: str) -> None:
    """Print, once for all processes."""
    if distributed.rank() == 0:
        print(text, flush=True)


def train_program(
    task: str, default_recipe: str, description: str, arguments: Sequence[str] | None
) -> int:
    """A program that trains one network by a recipe and reports; returns its exit status."""
    program = "models.classify" if task == "classification" else "models.cluster"
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(f"python -m {program}", description=description)
    parser.add_argument(
        "--recipe",
        default=default_recipe,
        help=f"a .toml, or a name in models/recipes; default: {default_recipe}",
    )
    add_recipe_options(parser, [name for name in RECIPE_VALUES if name != "task"])
    add_run_options(parser, f"runs/{task}")
    parser.add_argument("--resume", action="store_true", help="go on from --out's checkpoint")
    args = parser.parse_args(arguments)

    def body() -> None:
        recipe = load(args.recipe)
        if recipe.task != task:
            raise RecipeError(f"--recipe: expected one of {task}, {args.recipe} is {recipe.task}")
        train_and_report(
            recipe.with_values(**recipe_values(args)), args, command(program, arguments)
        )

    return guarded(body, program, arguments)


def train_and_report(
    recipe: Recipe, args: argparse.Namespace, command: str, start: Path | None = None
) -> None:
    """One run, its scores printed, its report written."""
    device = device_of(args)
    with distributed.process_group(device):
        title = f"{TITLES[recipe.network]} {recipe.variant}, {recipe.task}"
        run(
            recipe,
            load_data(recipe, args, device),
            args.out,
            start=start,
            resume=args.resume,
            checkpoint_every=args.checkpoint_every,
            title=title,
            command=command,
        )
        if distributed.rank() == 0:
            page = report.of_run(EndedRun.read(args.out), args.tsne_points)
            print(page.text())
            report.write(args.out / "report.html", page)
            print(f"{args.out / 'report.html'} shows it all")


def command(program: str, arguments: Sequence[str]) -> str:
    """The command line, to be typed again."""
    return shlex.join(["python", "-m", program, *arguments])


def guarded(
    body: Callable[[], None],
    program: str,
    arguments: Sequence[str],
    resume: Sequence[str] | None = ("--resume",),
) -> int:
    """Run ``body``; what can go wrong ends in one clear message. Returns the exit status.

    Args:
        resume: what the command needs to go on from its checkpoints; None: it has none.
    """
    try:
        with data.worker_failures():
            body()
    except (data.DataError, CheckpointError, RecipeError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no place, no permission, no such file
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteLossError as error:
        print(f"error: stopped, {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        message = "\nInterrupted."
        if resume is not None:
            again = [*(a for a in arguments if a != "--resume"), *resume]
            message += " The checkpoints have every finished epoch; go on with\n  "
            message += command(program, again)
        print(message, file=sys.stderr)
        return 130
    return 0
