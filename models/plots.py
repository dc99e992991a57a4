"""The pictures of a run. Each function returns a figure; nothing here touches a global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE
from torch import Tensor

Points = npt.NDArray[np.float32]
COLOURS = {"classification": "#7a8699", "clustering": "#d1495b", "warm_start": "#00798c"}
NAMES = {
    "classification": "cross-entropy",
    "clustering": "clustering",
    "warm_start": "warm start",
}


def tsne(outputs: Tensor, seed: int) -> Points:
    """The rows of ``outputs`` (n, K) as points in the plane, (n, 2)."""
    perplexity = min(30.0, (len(outputs) - 1) / 3)
    embedding = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return np.asarray(embedding.fit_transform(outputs.float().numpy()), dtype=np.float32)


def tsne_figure(
    points: dict[str, Points], labels: npt.NDArray[np.int64], results: dict[str, Any]
) -> Figure:
    """Figure 3 of the paper: the last layer's outputs, cross-entropy beside clustering."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots(1, len(points))
    for axis, (phase, cloud) in zip(axes, points.items(), strict=True):
        _scatter(axis, phase, cloud, labels, results)
    _class_legend(figure, axes[-1], results["data"]["classes"])
    return figure


def curves_figure(results: dict[str, Any]) -> Figure:
    """Accuracy on the test set by epoch, and the two parts of the pair loss."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    _accuracy_curves(accuracy, results)
    _loss_curves(loss, results)
    return figure


def pairs_figure(results: dict[str, Any]) -> Figure:
    """How much of the pairs still pushes, and how many clusters hold images, by epoch."""
    history = results["phases"]["clustering"]["history"]
    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(10, 3.0), layout="constrained")
    active, used = figure.subplots(1, 2)
    _line(active, epochs, [100 * r["active_fraction"] for r in history], COLOURS["clustering"])
    active.set_title("Active dissimilar pairs (KL below the margin), %")
    active.set_ylim(bottom=0)
    _line(used, epochs, [r["clusters_in_use"] for r in history], COLOURS["clustering"])
    used.set_title("Clusters in use on the test set")
    used.set_ylim(0, len(results["data"]["classes"]) + 0.5)
    return figure


def overview_figure(
    points: dict[str, Points], labels: npt.NDArray[np.int64], results: dict[str, Any]
) -> Figure:
    """t-SNE and accuracy in one strip, small enough for a README."""
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    axes = figure.subplots(1, len(points) + 1)
    for axis, (phase, cloud) in zip(axes, points.items(), strict=False):
        _scatter(axis, phase, cloud, labels, results)
    _accuracy_curves(axes[-1], results)
    _class_legend(figure, axes[0], results["data"]["classes"])
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _scatter(
    axis: Axes,
    phase: str,
    cloud: Points,
    labels: npt.NDArray[np.int64],
    results: dict[str, Any],
) -> None:
    accuracy = results["phases"][phase]["scores"]["accuracy"]["value"]
    colours = colormaps["tab10"].resampled(10) if labels.max() < 10 else colormaps["turbo"]
    for index, name in enumerate(results["data"]["classes"]):
        mine = cloud[labels == index]
        colour = colours(index if labels.max() < 10 else index / labels.max())
        axis.scatter(mine[:, 0], mine[:, 1], s=9, color=colour, label=name, linewidths=0)
    axis.set_title(f"{NAMES[phase]}, {100 * accuracy:.1f} %")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_color("#d5d9e0")


def _class_legend(figure: Figure, axis: Axes, classes: Sequence[str]) -> None:
    handles, _ = axis.get_legend_handles_labels()
    columns = min(len(classes), 10 if sum(map(len, classes)) < 90 else 5)
    figure.legend(
        handles,
        classes,
        loc="outside lower center",
        ncols=columns,
        markerscale=2,
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.2,
    )


def _accuracy_curves(axis: Axes, results: dict[str, Any]) -> None:
    for phase, run in results["phases"].items():
        epochs = [record["epoch"] for record in run["history"]]
        values = [100 * record["accuracy"] for record in run["history"]]
        _line(axis, epochs, values, COLOURS[phase], NAMES[phase])
    axis.set_title("Test accuracy by epoch, %")
    axis.legend(frameon=False, loc="lower right")


def _loss_curves(axis: Axes, results: dict[str, Any]) -> None:
    history = results["phases"]["clustering"]["history"]
    epochs = [record["epoch"] for record in history]
    similar = [record["similar_loss"] for record in history]
    dissimilar = [record["dissimilar_loss"] for record in history]
    _line(axis, epochs, dissimilar, COLOURS["clustering"], "dissimilar pairs")
    _line(axis, epochs, similar, "#edae49", "similar pairs")
    axis.set_title("Pair loss by part (training)")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)


def _line(
    axis: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str | None = None
) -> None:
    axis.plot(x, y, color=colour, label=label, linewidth=1.8, marker="o", markersize=3)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y", color="#e6e9ee")
    axis.spines[["top", "right"]].set_visible(False)
