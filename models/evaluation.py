"""A trained network's outputs on a data set, and their scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models import metrics
from models.data import ImageData, Split
from models.training import Record


@torch.inference_mode()
def predict(model: nn.Module, split: Split, batch_size: int = 500) -> Tensor:
    """The outputs of ``model`` for all images of ``split``, in evaluation mode, on the CPU."""
    model.eval()
    return torch.cat([model(images) for images, _ in split.batches(batch_size)]).cpu()


def epoch_scores(model: nn.Module, data: ImageData, *, clusters: bool) -> Record:
    """What the learning curves show: a few scores on the test set."""
    found, labels = _found_and_labels(model, data.test)
    if not clusters:
        return {"accuracy": metrics.classification(found, labels).value}
    counts = metrics.contingency(found, labels, len(data.classes), len(data.classes))
    return {
        "accuracy": metrics.assignment_accuracy(metrics.assign(counts), found, labels).value,
        "nmi": metrics.nmi(found, labels),
        "clusters_in_use": metrics.clusters_in_use(counts),
    }


def classification_scores(model: nn.Module, data: ImageData) -> metrics.Classification:
    """Scores of a network whose outputs are classes, on the test set."""
    return metrics.Classification(metrics.classification(*_found_and_labels(model, data.test)))


def clustering_scores(model: nn.Module, data: ImageData) -> metrics.Clustering:
    """Scores of a network whose outputs are clusters, as many as classes, on the test set."""
    return metrics.clustering(
        *_found_and_labels(model, data.test),
        *_found_and_labels(model, data.train),
        num_clusters=len(data.classes),
        num_classes=len(data.classes),
    )


def _found_and_labels(model: nn.Module, split: Split) -> tuple[metrics.Ints, metrics.Ints]:
    """The largest output of each image, and its fine label."""
    found = predict(model, split).argmax(1)
    return np.asarray(found, dtype=np.int64), np.asarray(split.labels[:, 0].cpu(), dtype=np.int64)
