"""A trained network's outputs on a data set, and their scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models import metrics
from models.data import ImageData, Split
from models.networks.variants import FINE
from models.training import NonFiniteLossError, Record


@torch.inference_mode()
def predict(model: nn.Module, split: Split, batch_size: int = 500) -> Tensor:
    """The last layer's outputs for all images of ``split``, in evaluation mode, on the CPU.

    Raises:
        NonFiniteLossError: an output is NaN or infinite, as after a last step that diverged: the
            losses, which are from before their steps, do not show that.
    """
    model.eval()
    outputs = torch.cat([model(images)["fc3"].cpu() for images, _ in split.batches(batch_size)])
    wrong = int((~outputs.isfinite()).any(1).sum())
    if wrong:
        raise NonFiniteLossError(
            f"the network's outputs are NaN or infinite for {wrong} of {len(outputs)} images"
        )
    return outputs


def epoch_scores(model: nn.Module, data: ImageData, *, clusters: bool) -> Record:
    """What the learning curves show: a few scores on the test set."""
    found, labels = _largest(predict(model, data.test)), fine_labels(data.test)
    if not clusters:
        return {"accuracy": metrics.accuracy(found, labels).value}
    counts = metrics.contingency(found, labels, len(data.classes), len(data.classes))
    return {
        "accuracy": metrics.assignment_accuracy(metrics.assign(counts), found, labels).value,
        "nmi": metrics.nmi(found, labels),
        "clusters_in_use": metrics.clusters_in_use(counts),
    }


def final_scores(
    model: nn.Module, data: ImageData, test_outputs: Tensor, *, clusters: bool
) -> metrics.Classification | metrics.Clustering:
    """All scores on the test set; the training set only fits one of the assignments."""
    found, labels = _largest(test_outputs), fine_labels(data.test)
    num_classes = len(data.classes)
    if not clusters:
        return metrics.classification(found, labels, num_classes)
    return metrics.clustering(
        found,
        labels,
        _largest(predict(model, data.train)),
        fine_labels(data.train),
        num_clusters=num_classes,
        num_classes=num_classes,
    )


def fine_labels(split: Split) -> metrics.Ints:
    """The finest labels, (n,)."""
    return np.asarray(split.labels[:, FINE].cpu(), dtype=np.int64)


def _largest(outputs: Tensor) -> metrics.Ints:
    return np.asarray(outputs.argmax(1), dtype=np.int64)
