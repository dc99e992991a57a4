"""The pictures of ended runs. Each function returns a figure and touches no global state."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE

from models.run import EndedRun

# Of a run's records: the name, what it is, and how its curve is drawn.
PARTS_OF_LOSS = (
    ("fc3_dissimilar_loss", "dissimilar pairs", "-"),
    ("fc3_similar_loss", "similar pairs", ":"),
)
CROSS_ENTROPY = (("loss", "cross-entropy", "--"),)
Points = npt.NDArray[np.float32]
# One for each of a table's rows, of which there are ten; a warm start has its clustering's.
COLOURS = (
    *("#7a8699", "#d1495b", "#00798c", "#edae49", "#6a4c93", "#2e933c", "#a0522d", "#3d5a98"),
    *("#e377c2", "#17becf", "#9acd32", "#000000"),
)
LEGEND_CLASSES = 20  # more than these are not named beside a picture
LEGEND_RUNS = 6  # more than these are named below it


def tsne(run: EndedRun, count: int) -> tuple[Points, npt.NDArray[np.int64]]:
    """``count`` of the run's test images as points in the plane, and their labels.

    The points are t-SNE's of the last layer's outputs, before any softmax; the images are the same
    for every run on the same data.
    """
    chosen = torch.randperm(len(run.outputs), generator=torch.Generator().manual_seed(0))[:count]
    outputs = run.outputs[chosen].float().numpy()
    embedding = TSNE(perplexity=min(30.0, (len(outputs) - 1) / 3), init="pca", random_state=0)
    points = np.asarray(embedding.fit_transform(outputs), dtype=np.float32)
    return points, run.labels[chosen.numpy()]


def tsne_figure(runs: Sequence[EndedRun], count: int) -> Figure:
    """Figure 3 of the paper: the last layer's outputs, cross-entropy beside clustering."""
    figure, axes = _grid(len(runs), width=5.0, height=4.6, columns=3)
    for axis, run in zip(axes, runs, strict=True):
        _scatter(axis, run, *tsne(run, count))
    _class_legend(figure, axes[0], runs[0].classes)
    return figure


def curves_figure(runs: Sequence[EndedRun]) -> Figure:
    """By epoch: accuracy on the test set, and the loss of the last layer, a clustering's in its two
    parts."""
    height = 3.6 if len(runs) <= LEGEND_RUNS else 3.8 + 0.08 * len(runs)
    figure, (accuracy, loss) = _grid(2, width=5.0, height=height, columns=2)
    _accuracy_curves(accuracy, runs)
    drawn: dict[str, Any] = {}  # the kinds of curves, and how each is drawn
    for run, colour in zip(runs, _row_colours(runs), strict=True):
        for name, kind, style in PARTS_OF_LOSS if run.clusters else CROSS_ENTROPY:
            _line(loss, run, name, colour, style=style)
            drawn[kind] = style
    loss.set_title("Loss of the last layer in training, nats")
    loss.set_ylim(bottom=0)
    handles = [Line2D([], [], color="#1d2733", linestyle=style) for style in drawn.values()]
    loss.legend(handles, drawn, frameon=False, fontsize="small")
    return figure


def pairs_figure(runs: Sequence[EndedRun]) -> Figure:
    """How much of the pairs still pushes, by layer, and how many clusters hold images, by epoch."""
    figure, axes = _grid(len(runs) + 1, width=3.6, height=3.0, columns=3)
    for axis, run in zip(axes, runs, strict=False):
        for index, tap in enumerate(reversed(run.results["network"]["taps"])):
            name = f"{tap['layer']}_active_fraction"
            _line(axis, run, name, COLOURS[index + 1], tap["layer"], scale=100)
        axis.set_title(f"{run.title}: active pairs, %")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    for index, run in enumerate(runs):
        _line(axes[-1], run, "clusters_in_use", COLOURS[(index + 1) % len(COLOURS)], run.title)
    axes[-1].set_title("Clusters in use on the test set")
    axes[-1].set_ylim(0, len(runs[0].classes) * 1.05)
    axes[-1].legend(frameon=False, fontsize="small")
    return figure


def confusion_figure(runs: Sequence[EndedRun]) -> Figure:
    """Each class (row) in the cluster that stands for each class (column), or predicted as it."""
    figure, axes = _grid(len(runs), width=5.4, height=5.0, columns=2)
    classes = runs[0].classes
    for axis, run in zip(axes, runs, strict=True):
        counts = np.array(run.results["scores"]["confusion"])
        share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        axis.imshow(share, cmap="GnBu", vmin=0, vmax=1)
        axis.set_title(run.title)
        if len(classes) <= LEGEND_CLASSES:
            axis.set_xticks(
                range(counts.shape[1]), classes[: counts.shape[1]], rotation=60, ha="right"
            )
            axis.set_yticks(range(len(classes)), classes)
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    ink = "white" if share[row, column] > 0.6 else "#1d2733"
                    axis.text(column, row, count, ha="center", va="center", fontsize=7, color=ink)
        axis.tick_params(labelsize=8, length=0)
        axis.spines[:].set_visible(False)
    return figure


def overview_figure(drawn: Sequence[EndedRun], runs: Sequence[EndedRun], count: int) -> Figure:
    """t-SNE of ``drawn`` and the accuracy of ``runs`` in one strip, small enough for a README."""
    figure, axes = _grid(len(drawn) + 1, width=4.0, height=3.9, columns=len(drawn) + 1)
    for axis, run in zip(axes, drawn, strict=False):
        _scatter(axis, run, *tsne(run, count))
    _accuracy_curves(axes[-1], runs)
    _class_legend(figure, axes[0], runs[0].classes)
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _grid(count: int, width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` axes of that size each, in rows of at most ``columns``."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def _scatter(axis: Axes, run: EndedRun, cloud: Points, labels: npt.NDArray[np.int64]) -> None:
    few = len(run.classes) <= 10
    for index, name in enumerate(run.classes):
        mine = cloud[labels == index]
        colour = colormaps["tab10"](index) if few else colormaps["turbo"](index / len(run.classes))
        axis.scatter(mine[:, 0], mine[:, 1], s=9, color=colour, label=name, linewidths=0)
    axis.set_title(f"{run.title}, {100 * run.results['scores']['accuracy']['value']:.1f} %")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_color("#d5d9e0")


def _class_legend(figure: Figure, axis: Axes, classes: Sequence[str]) -> None:
    if len(classes) > LEGEND_CLASSES:
        return
    handles, _ = axis.get_legend_handles_labels()
    width = 0.5 + 0.1 * max(map(len, classes))  # of an entry, in inches
    figure.legend(
        handles,
        classes,
        loc="outside lower center",
        ncols=min(len(classes), int(figure.get_figwidth() / width)),
        markerscale=2,
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.2,
    )


def _accuracy_curves(axis: Axes, runs: Sequence[EndedRun]) -> None:
    for run, colour in zip(runs, _row_colours(runs), strict=True):
        style = "--" if _is_warm(run) else "-"
        _line(axis, run, "accuracy", colour, run.title, scale=100, style=style)
    axis.set_title("Test accuracy by epoch, %")
    if len(runs) <= LEGEND_RUNS:
        axis.legend(frameon=False, loc="lower right", fontsize="small")
    else:
        handles, titles = axis.get_legend_handles_labels()
        axis.figure.legend(
            handles, titles, loc="outside lower center", ncols=3, frameon=False, fontsize="small"
        )


def _is_warm(run: EndedRun) -> bool:
    return run.results["start"] is not None


def _row_colours(runs: Sequence[EndedRun]) -> list[str]:
    """A colour for each row; a warm start comes after the clustering that it has its own from."""
    rows = itertools.accumulate(
        not (_is_warm(run) and before is not None and before.clusters)
        for before, run in zip([None, *runs], runs, strict=False)
    )
    return [COLOURS[(row - 1) % len(COLOURS)] for row in rows]


def _line(
    axis: Axes,
    run: EndedRun,
    name: str,
    colour: str,
    label: str | None = None,
    *,
    scale: float = 1.0,
    style: str = "-",
) -> None:
    history = run.results["history"]
    epochs, values = [r["epoch"] for r in history], [scale * r[name] for r in history]
    marker = "o" if len(epochs) <= 30 else None
    axis.plot(
        epochs, values, style, color=colour, label=label, linewidth=1.6, marker=marker, markersize=3
    )
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y", color="#e6e9ee")
    axis.spines[["top", "right"]].set_visible(False)
