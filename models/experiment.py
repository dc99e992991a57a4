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
from models.training import (
    Objective,
    PairObjective,
    Recipe,
    Record,
    cross_entropy,
    train,
)


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


@dataclass
class Outcome:
    """What the three runs gave: ``results`` is plain data, for JSON and the report."""

    results: dict[str, Any]
    test_outputs: dict[str, Tensor]  # the last layer's outputs on the test set, by phase


def run(
    data: ImageData,
    recipe: Recipe,
    *,
    pair_objective: PairObjective,
    batch_norm: bool,
    seed: int,
    out: Path,
    resume: bool,
    data_name: str,
) -> Outcome:
    """Train the three phases, with checkpoints in ``out/checkpoints``, and score them.

    The first two start from the same weights and see the batches in the same order. All three
    train for the same number of epochs, as in the paper, and their final weights are scored:
    nothing is selected on the test set.
    """
    models: dict[str, nn.Module] = {}
    phases: dict[str, Any] = {}
    test_outputs: dict[str, Tensor] = {}
    for phase in PHASES:
        torch.manual_seed(seed)
        model = LeNet(data.in_shape, len(data.classes), batch_norm=batch_norm)
        model.to(data.train.labels.device)
        if phase.start is not None:
            model.load_state_dict(models[phase.start].state_dict())
        objective: Objective = pair_objective if phase.clusters else cross_entropy
        settings: dict[str, Any] = {
            "phase": phase.name,
            "data": data_name,
            "network": "LeNet",
            "batch_norm": batch_norm,
        }
        if phase.clusters or phase.start:
            settings |= asdict(pair_objective)

        def evaluate(model: nn.Module, phase: Phase = phase) -> Record:
            return epoch_scores(model, data, clusters=phase.clusters)

        history = train(
            model,
            data.train,
            objective,
            recipe,
            seed=seed,
            evaluate=evaluate,
            checkpoint_path=out / "checkpoints" / f"{phase.name}.pt",
            settings=settings,
            resume=resume,
            title=phase.title,
        )
        score = clustering_scores if phase.clusters else classification_scores
        models[phase.name] = model
        test_outputs[phase.name] = predict(model, data.test.images)
        phases[phase.name] = {
            "title": phase.title,
            "history": history,
            "seconds": sum(record["seconds"] for record in history),
            "scores": asdict(score(model, data)),
        }
    results = {
        "data": {
            "name": data_name,
            "title": data.title,
            "classes": list(data.classes),
            "train_images": len(data.train),
            "test_images": len(data.test),
            **data.notes,
        },
        "network": {
            "name": "LeNet",
            "in_shape": list(data.in_shape),
            "batch_norm": batch_norm,
            "parameters": sum(p.numel() for p in models["clustering"].parameters()),
        },
        "recipe": {**asdict(recipe), **asdict(pair_objective), "seed": seed},
        "versions": versions(data.train.labels.device),
        "phases": phases,
    }
    return Outcome(results, test_outputs)


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
