"""The warm-start experiment: cross-entropy, clustering, and cross-entropy from the clusters."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sklearn
import torch
import torchvision
from torch import Tensor, nn

import pairloss
from models.data import ImageData
from models.evaluation import classification_scores, clustering_scores, epoch_scores, predict
from models.lenet import LeNet
from models.training import PairObjective, Recipe, cross_entropy, train


@dataclass(frozen=True)
class Phase:
    """One of the three runs. ``start`` names the run whose final weights it begins with."""

    name: str
    title: str
    clusters: bool
    start: str | None = None


PHASES = (
    Phase("classification", "Classification", clusters=False),
    Phase("clustering", "Clustering (variant A)", clusters=True),
    Phase("warm_start", "Warm start classification", clusters=False, start="clustering"),
)


@dataclass(frozen=True)
class Experiment:
    """What the three runs have in common."""

    data_name: str
    recipe: Recipe
    pair_objective: PairObjective
    batch_norm: bool
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What the three runs gave: ``results`` is plain data, for JSON and the report."""

    results: dict[str, Any]
    test_outputs: dict[str, Tensor]  # the last layer's outputs on the test set, by phase


def run(experiment: Experiment, data: ImageData, checkpoints: Path, resume: bool) -> Outcome:
    """Train the three phases, with their checkpoints in the folder ``checkpoints``, and score them.

    The first two start from the same weights and see the batches in the same order. All three
    train for the same number of epochs, as in the paper, and their final weights are scored:
    nothing is selected on the test set.
    """
    models: dict[str, nn.Module] = {}
    phases: dict[str, Any] = {}
    for phase in PHASES:
        torch.manual_seed(experiment.seed)
        model = LeNet(data.in_shape, len(data.classes), batch_norm=experiment.batch_norm)
        model.to(data.train.labels.device)
        if phase.start is not None:
            model.load_state_dict(models[phase.start].state_dict())
        path = checkpoints / f"{phase.name}.pt"
        phases[phase.name] = _train_and_score(experiment, phase, model, data, path, resume)
        models[phase.name] = model
    results = _describe(experiment, data, models["clustering"]) | {"phases": phases}
    test_outputs = {name: predict(model, data.test) for name, model in models.items()}
    return Outcome(results, test_outputs)


def _train_and_score(
    experiment: Experiment,
    phase: Phase,
    model: nn.Module,
    data: ImageData,
    checkpoint_path: Path,
    resume: bool,
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "phase": phase.name,
        "data": experiment.data_name,
        "network": "LeNet",
        "batch_norm": experiment.batch_norm,
    }
    if phase.clusters or phase.start:
        settings |= asdict(experiment.pair_objective)
    history = train(
        model,
        data.train,
        experiment.pair_objective if phase.clusters else cross_entropy,
        experiment.recipe,
        seed=experiment.seed,
        evaluate=lambda model: epoch_scores(model, data, clusters=phase.clusters),
        checkpoint_path=checkpoint_path,
        settings=settings,
        resume=resume,
        title=phase.title,
    )
    score = clustering_scores if phase.clusters else classification_scores
    return {
        "title": phase.title,
        "history": history,
        "seconds": sum(record["seconds"] for record in history),
        "scores": asdict(score(model, data)),
    }


def _describe(experiment: Experiment, data: ImageData, model: nn.Module) -> dict[str, Any]:
    return {
        "data": {
            "name": experiment.data_name,
            "title": data.title,
            "classes": list(data.classes),
            "train_images": len(data.train),
            "test_images": len(data.test),
            **data.notes,
        },
        "network": {
            "name": "LeNet",
            "in_shape": list(data.in_shape),
            "batch_norm": experiment.batch_norm,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "recipe": {
            **asdict(experiment.recipe),
            **asdict(experiment.pair_objective),
            "seed": experiment.seed,
        },
        "versions": versions(data.train.labels.device),
    }


def versions(device: torch.device) -> dict[str, str]:
    """What a result depends on beside its settings."""
    on_gpu = device.type == "cuda"
    return {
        "pairloss": pairloss.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "scikit-learn": sklearn.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
        "threads": str(torch.get_num_threads()),
    }
