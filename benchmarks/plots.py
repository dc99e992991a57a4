"""Pictures of a record: time and memory of every method against the size of the case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from benchmarks.pair_kl_hinge import METHODS  # noqa: E402
from benchmarks.record import Record, Result  # noqa: E402

Curve = tuple[str, list[tuple[float, float]]]


def draw(record: Record, folder: Path) -> list[Path]:
    """One picture of time and one of memory for each kind of logits; returns their paths."""
    paths = []
    for kind in dict.fromkeys(result.case.logits for result in record.results):
        results = [result for result in record.results if result.case.logits == kind]
        timed = [result for result in results if result.seconds]
        paths.append(
            loglog(
                folder / f"time-{kind}.png",
                _curves(timed, lambda result: 1e3 * result.median),
                title=f"Loss and gradient, {kind} logits",
                labels=("N² K", "ms"),
            )
        )
        weighed = [result for result in results if result.peak_bytes]
        paths.append(
            loglog(
                folder / f"memory-{kind}.png",
                _curves(weighed, lambda result: (result.peak_bytes or 0) / 2**20),
                title=f"Peak memory beyond the inputs, {kind} logits",
                labels=("N² K", "MiB"),
            )
        )
    return paths


def _curves(results: Iterable[Result], value: Callable[[Result], float]) -> list[Curve]:
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for result in results:
        work = result.case.rows**2 * result.case.columns
        points[result.method].append((float(work), value(result)))
    return [(name, sorted(found)) for name, found in points.items() if found]


def loglog(
    path: Path,
    curves: Iterable[Curve],
    title: str,
    labels: tuple[str, str],
    ticks: Sequence[int] = (),
) -> Path:
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    assert isinstance(axes, Axes)
    for index, (name, points) in enumerate(curves):
        x, y = zip(*points, strict=True)
        ours = name.startswith("pairloss")
        axes.loglog(x, y, marker="osv^D*xP"[index % 8], label=name, linewidth=2.5 if ours else 1)
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    if ticks:
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xticks([], minor=True)
    if axes.lines:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
