"""One training run, from its recipe to a folder of results.

The folder has ``recipe.toml``; ``checkpoint.pt`` while the run is under way; and when it has ended
``weights.pt``, ``outputs.pt`` (of the test images, with their labels) and, last, ``results.json``.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import scipy
import sklearn
import torch
import torchvision

import pairloss
from models import checkpoint, distributed
from models.checkpoint import CheckpointError
from models.data import ImageData
from models.files import atomic_write, write_text
from models.metrics import Ints
from models.networks import NETWORKS, Network, load_imagenet
from models.networks.variants import has_branch
from models.objectives import Objective, PairObjective, cross_entropy
from models.recipe import Recipe, RecipeError, from_values
from models.scores import epoch_scores, final_scores, fine_labels, predict
from models.training import train

Results = dict[str, Any]  # plain data, as in results.json


@dataclass(frozen=True)
class EndedRun:
    """What a run left: its results, and the last layer's outputs (n, K) on the test images."""

    title: str
    results: Results
    outputs: torch.Tensor
    labels: Ints  # the finest, (n,)

    @classmethod
    def read(cls, folder: Path) -> EndedRun:
        """The run in ``folder``.

        Raises:
            CheckpointError: there is none that has ended.
        """
        results = read_results(folder)
        arrays = torch.load(folder / "outputs.pt", weights_only=True)
        return cls(results["title"], results, arrays["outputs"], arrays["labels"].numpy())

    @property
    def clusters(self) -> bool:
        """Whether it is a clustering."""
        return bool(self.results["recipe"]["task"] == "clustering")

    @property
    def classes(self) -> list[str]:
        """The finest classes."""
        levels: dict[str, list[str]] = self.results["data"]["levels"]
        return next(iter(levels.values()))


def run(
    recipe: Recipe,
    data: ImageData,
    out: Path,
    *,
    start: Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    title: str = "training",
    command: str = "",
) -> Results:
    """Train and score by ``recipe``; everything is written to the folder ``out``.

    The weights after the last epoch are scored: nothing is selected on the test set.

    Args:
        start: folder of an ended run, whose final weights this one begins with: the warm start.
        resume: go on from ``out``'s checkpoint; a run that has ended is only read.

    Raises:
        RecipeError, WeightsError, CheckpointError, DataError, NonFiniteLossError
    """
    if start is not None and start.resolve() == out.resolve():
        raise RecipeError(f"out: expected another folder than start, got {out} for both")
    began = None if start is None else read_recipe(start).plain()
    images = data.identity()
    settings = {"start": began, "images": images}
    # A value that an older recipe did not have yet was what its default does now, and what an older
    # run does not say of its images is not compared.
    older = {**Recipe().plain(), "start": Recipe().plain(), "images": images}
    if resume and (out / "results.json").exists():
        results = read_results(out)
        seen = {name: value for name, value in results["data"].items() if name in images}
        checkpoint.check_settings(
            out / "results.json",
            {**results["recipe"], "start": results["start"], "images": seen},
            {**recipe.plain(), **settings},
            older,
        )
        return results
    network = build(recipe, data)
    if start is not None:
        load_weights(network, start)
    checkpoint_path = out / "checkpoint.pt"
    if distributed.rank() == 0:
        (out / "results.json").unlink(missing_ok=True)  # of a run that this one replaces
        recipe.save(out / "recipe.toml")
    history = train(
        network,
        data.train,
        objective(recipe),
        recipe,
        evaluate=lambda model: epoch_scores(model, data, clusters=recipe.clusters),
        checkpoint_path=checkpoint_path,
        checkpoint_every=checkpoint_every,
        settings=settings,
        older=older,
        resume=resume,
        title=title,
    )
    results = {
        "title": title,
        "command": command,
        "recipe": recipe.plain(),
        "start": began,
        "data": {"title": data.title, **images, "notes": data.notes},
        "network": {
            "name": recipe.network,
            "in_shape": list(data.in_shape),
            "parameters": sum(p.numel() for p in network.parameters()),
            "taps": [asdict(tap) for tap in recipe.taps] if recipe.clusters else [],
        },
        "history": history,
        "seconds": sum(record["seconds"] for record in history),
        "versions": versions(data.train.labels.device),
    }
    if distributed.rank() == 0:
        outputs = predict(network, data.test)
        scores = final_scores(network, data, outputs, clusters=recipe.clusters)
        results["scores"] = asdict(scores)
        _write(out, results, network, outputs, torch.from_numpy(fine_labels(data.test)))
        checkpoint_path.unlink(missing_ok=True)
    distributed.wait_for_all()
    return read_results(out)


def build(recipe: Recipe, data: ImageData) -> Network:
    """The recipe's network for ``data``, on its device, with its initial weights."""
    lowest = max(tap.level for tap in recipe.taps) if recipe.clusters else 0
    if lowest >= len(data.levels):
        raise RecipeError(
            f"variant: {recipe.variant} needs coarse labels, and {data.title} has only "
            f"{', '.join(level.name for level in data.levels)}"
        )
    torch.manual_seed(recipe.seed)
    try:
        network = NETWORKS[recipe.network](
            data.in_shape,
            len(data.classes),
            width=recipe.width,
            batch_norm=recipe.batch_norm,
            branch=has_branch(recipe.variant),
        )
    except ValueError as error:
        raise RecipeError(f"network: {recipe.network} cannot take {data.title}: {error}") from error
    if recipe.imagenet:
        load_imagenet(network, recipe.imagenet)
    return network.to(data.train.labels.device)


def objective(recipe: Recipe) -> Objective:
    """What the recipe minimises."""
    if not recipe.clusters:
        return cross_entropy
    return PairObjective(
        recipe.taps,
        margin=recipe.margin,
        gradient=recipe.gradient,
        balance=None if recipe.balance == "none" else recipe.balance,
        precision=recipe.precision,
        impl=recipe.impl,
    )


def read_results(folder: Path) -> Results:
    """The results of an ended run.

    Raises:
        CheckpointError: there is no ended run in ``folder``.
    """
    path = folder / "results.json"
    try:
        results: Results = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no results.json: no run has ended there.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged; delete it.") from error
    if not isinstance(results, dict) or "recipe" not in results:
        raise CheckpointError(f"{path}: expected the results of one run, got another file.")
    return results


def read_recipe(folder: Path) -> Recipe:
    """The recipe of an ended run."""
    return from_values(read_results(folder)["recipe"])


def load_weights(network: Network, folder: Path) -> None:
    """Give ``network`` the final weights of the run in ``folder``.

    Raises:
        CheckpointError: they are not there, damaged, or of another network.
    """
    device = next(network.parameters()).device
    state = checkpoint.load(folder / "weights.pt", None, device)
    try:
        network.load_state_dict(state["model"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder / 'weights.pt'} is of another network: {error}") from error


def versions(device: torch.device) -> dict[str, str]:
    """What a result depends on beside its recipe."""
    on_gpu = device.type == "cuda"
    return {
        "pairloss": pairloss.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "scikit-learn": sklearn.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
        "threads": str(torch.get_num_threads()),
        "processes": str(distributed.world_size()),
    }


def _write(
    out: Path, results: Results, network: Network, outputs: torch.Tensor, labels: torch.Tensor
) -> None:
    checkpoint.save(out / "weights.pt", {"model": network.state_dict()})
    with atomic_write(out / "outputs.pt") as file:
        torch.save({"outputs": outputs, "labels": labels}, file)
    write_text(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
