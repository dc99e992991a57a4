"""One HTML page for one table or run: everything embedded, so that it can be sent as a file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from models import plots, summary
from models.files import write_text
from models.run import EndedRun
from models.summary import Table


@dataclass(frozen=True)
class Section:
    """A heading, then a table or a picture (PNG), then what it shows."""

    heading: str
    note: str
    table: Table | None = None
    picture: bytes | None = None

    @property
    def source(self) -> str:
        """The picture as the source of an HTML image."""
        return "data:image/png;base64," + base64.b64encode(self.picture or b"").decode()


@dataclass(frozen=True)
class Page:
    """A report: its sections, the command that made it, and facts by heading."""

    title: str
    lead: str
    sections: list[Section]
    command: str
    facts: dict[str, dict[str, str]]

    def text(self) -> str:
        """Its tables, to be printed."""
        tables = [s for s in self.sections if s.table is not None]
        return "\n".join(f"\n{summary.as_text(s.table or [])}\n{s.note}" for s in tables)

    def markdown(self) -> str:
        """Its title, its tables and the command, as Markdown."""
        tables = [s for s in self.sections if s.table is not None]
        parts = [f"{summary.as_markdown(s.table or [])}\n\n{s.heading}. {s.note}" for s in tables]
        return "\n\n".join([f"# {self.title}", self.lead, *parts, f"`{self.command}`"]) + "\n"


def of_run(run: EndedRun, tsne_points: int) -> Page:
    """The report of one run."""
    n = run.results["scores"]["accuracy"]["n"]
    table = Section("Scores", SCORES_NOTE.format(n=n), summary.scores_table(run.results["scores"]))
    return Page(
        title=f"{run.title}: {run.results['data']['title']}",
        lead=f"{len(run.results['history'])} epochs, scored after the last on {n} test images.",
        sections=[table, *pictures([run], [run], tsne_points)],
        command=run.results["command"],
        facts=facts([run]),
    )


SCORES_NOTE = (
    "Accuracies in percent with 95 % Wilson intervals, n = {n} test images. A clustering's "
    "accuracy: the largest output is the cluster, and clusters are assigned to classes one to one "
    "by the Hungarian algorithm on the test set; “fitted on train”: on the training set; “chance”: "
    "on the test set, with the same clusters dealt out to the images at random. AMI is the mutual "
    "information adjusted for chance."
)


def pictures(
    drawn: Sequence[EndedRun], runs: Sequence[EndedRun], tsne_points: int
) -> list[Section]:
    """t-SNE and confusion of the runs ``drawn``, curves of all ``runs``, pairs of clusterings."""
    sections = [
        Section(
            "What the last layer sees",
            "t-SNE of the outputs of the last layer on at most "
            f"{tsne_points} test images, coloured by class; in the manner of the paper's Figure 3.",
            picture=plots.png(plots.tsne_figure(drawn, tsne_points)),
        ),
        Section(
            "Learning curves",
            "Losses are averages over the batches of an epoch.",
            picture=plots.png(plots.curves_figure(runs)),
        ),
        Section(
            "Confusion",
            "Test images of each class (row) in the cluster that stands for each class (column) by "
            "the Hungarian assignment, or predicted as it. Shade: share of the row.",
            picture=plots.png(plots.confusion_figure(drawn)),
        ),
    ]
    clusterings = [run for run in runs if run.clusters]
    if clusterings:
        note = (
            "A dissimilar pair (i, j) is active, and has a gradient, while KL(Pᵢ ‖ Pⱼ) is below "
            "the margin. Averages over the batches of an epoch, for each layer that has a loss."
        )
        picture = plots.png(plots.pairs_figure(clusterings))
        sections.insert(2, Section("The pairs", note, picture=picture))
    return sections


def facts(runs: Sequence[EndedRun]) -> dict[str, dict[str, str]]:
    """What the runs were, by heading; data and versions are those of the first."""
    first = runs[0].results
    data = {k: v for k, v in first["data"].items() if k not in ("levels", "notes")}
    data |= {name: f"{len(classes)} classes" for name, classes in first["data"]["levels"].items()}
    parts: dict[str, dict[str, Any]] = {"Data": data | first["data"]["notes"]}
    for run in runs:
        names, taps = list(first["data"]["levels"]), run.results["network"]["taps"]
        parts[f"Recipe: {run.title}"] = run.results["recipe"] | {
            "losses": [f"{t['weight']} x {t['layer']} ({names[t['level']]})" for t in taps],
            "parameters": run.results["network"]["parameters"],
            "training time": f"{run.results['seconds']:.1f} s",
        }
    parts["Versions"] = first["versions"]
    return {
        heading: {key.replace("_", " "): _plain(value) for key, value in part.items()}
        for heading, part in parts.items()
    }


def write(path: Path, page: Page) -> None:
    """The page as one HTML file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template("report.html.jinja").render(page=page))


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value) or "none"
