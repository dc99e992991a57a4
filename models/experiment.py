"""Rows of the paper's tables: each trained with several seeds, and all of them in one page."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import distributed, paper, report, summary
from models.data import ImageData
from models.files import write_text
from models.networks import TITLES
from models.run import EndedRun, run


@dataclass(frozen=True)
class Experiment:
    """Some rows of the paper's tables on one data set.

    Attributes:
        rows: keys of :data:`models.paper.ROWS`.
        like: whose recipes, "cifar10" or "birdsnap34".
        overrides: values of all recipes that are other than the paper's.
        out: folder of the results; a run is in ``runs/<row>/seed<n>/cluster`` or ``classify``.
    """

    rows: tuple[str, ...]
    like: str
    overrides: dict[str, Any]
    seeds: tuple[int, ...]
    out: Path
    command: str
    checkpoint_every: int = 1
    keep_weights: bool = False

    def folder(self, row: str, seed: int, phase: str) -> Path:
        """Where the run of ``phase``, "cluster" or "classify", is."""
        return self.out / "runs" / row / f"seed{seed}" / phase

    def forget(self) -> None:
        """Delete the runs of these rows and seeds; what else is in ``runs`` stays."""
        for row in self.rows:
            for seed in self.seeds:
                for phase in ("cluster", "classify"):
                    shutil.rmtree(self.folder(row, seed, phase), ignore_errors=True)

    def title(self, row: str) -> str:
        """The row's title."""
        known = paper.ROWS[row]
        clustering, classification = paper.recipes(known, self.like, self.overrides, 0)
        recipe = clustering or classification
        title = known.title.format(network=TITLES[recipe.network], batch=recipe.batch_size)
        return title + (" (ours)" if known.ours else "")

    def train(self, data: ImageData) -> None:
        """Train whatever has not ended; every seed of all rows before the next seed."""
        for seed in self.seeds:
            for row in self.rows:
                self._train_row(row, seed, data)

    def _train_row(self, row: str, seed: int, data: ImageData) -> None:
        clustering, classification = paper.recipes(paper.ROWS[row], self.like, self.overrides, seed)
        start = None
        if clustering is not None:
            start = self.folder(row, seed, "cluster")
            run(
                clustering,
                data,
                start,
                resume=True,
                checkpoint_every=self.checkpoint_every,
                title=self.title(row),
                command=self.command,
            )
        last = self.folder(row, seed, "classify")
        run(
            classification,
            data,
            last,
            start=start,
            resume=True,
            checkpoint_every=self.checkpoint_every,
            title=self.title(row) + (", warm start" if start else ""),
            command=self.command,
        )
        if not self.keep_weights and distributed.rank() == 0:
            for folder in (start, last):
                if folder is not None:
                    (folder / "weights.pt").unlink(missing_ok=True)

    def ended(self, row: str, phase: str) -> list[EndedRun]:
        """The ended runs of a row, by seed."""
        folders = [self.folder(row, seed, phase) for seed in self.seeds]
        return [EndedRun.read(f) for f in folders if (f / "results.json").exists()]

    def results(self) -> list[summary.RowResult]:
        """The scores of all rows."""
        figures = paper.FIGURES[self.like]
        return [
            summary.RowResult(
                self.title(row),
                [ended.results["scores"] for ended in self.ended(row, "cluster")],
                [ended.results["scores"] for ended in self.ended(row, "classify")],
                figures.get(row),
            )
            for row in self.rows
        ]

    def record(self) -> dict[str, Any]:
        """Everything that was measured, as plain data."""
        runs = [
            {"row": row, "phase": phase, **ended.results}
            for row in self.rows
            for phase in ("cluster", "classify")
            for ended in self.ended(row, phase)
        ]
        common = {name: runs[0][name] for name in ("command", "data", "versions")}
        # A run that went on later, or elsewhere, keeps what is other than the first one's.
        return {
            **common,
            "runs": [
                {k: v for k, v in each.items() if k not in common or v != common[k]}
                for each in runs
            ],
        }

    def page(self, title: str, nmi: str, tsne_points: int) -> report.Page:
        """The report: the table beside the paper's, over the seeds, and the first seed's runs."""
        rows, name = self.results(), paper.DATA_TITLES[self.like]
        runs = [
            self.ended(row, phase)[0]
            for row in self.rows
            for phase in ("cluster", "classify")
            if self.ended(row, phase)
        ]
        data = runs[0].results["data"]
        other = runs[0].results["recipe"]["data"] != self.like
        average = "arithmetic" if nmi == "nmi_arithmetic" else "geometric"
        note = f"{report.SCORES_NOTE.format(n=data['test_images'])} NMI: {average} normalisation."
        if len(self.seeds) > 1:
            note += " The best of the seeds is chosen on the test set, as in the paper."
        note += f" The paper's figures are those of {name}"
        note += ", another data set: they show its pattern only." if other else "."
        sections = [
            report.Section(
                "Beside the paper" if len(self.seeds) == 1 else "Best of the seeds, and the paper",
                note,
                summary.best_table(rows, nmi),
            ),
            report.Section(
                "Mean over the seeds", "± standard deviation.", summary.mean_table(rows, nmi)
            ),
        ]
        if self.rows[:2] == paper.TABLES[1] and "b" not in self.rows:
            table = summary.table_1(rows[:2], data["title"], name)
            sections.insert(0, report.Section("Table 1", "Accuracy in percent.", table))
        if len(self.seeds) == 1:
            sections.pop()
        drawn = [each for each in runs if each.clusters or each.results["start"] is None]
        return report.Page(
            title=f"{title}: {data['title']}",
            lead=f"{len(rows)} rows, seeds {', '.join(map(str, self.seeds))}; pictures and recipes "
            f"are of seed {self.seeds[0]}. Weights after the last epoch are scored.",
            sections=sections + report.pictures(drawn, runs, tsne_points),
            command=self.command,
            facts=report.facts(runs),
        )

    def write(self, folder: Path, title: str, nmi: str, tsne_points: int) -> report.Page:
        """Write ``results.json``, ``table.md`` and ``report.html``; returns the page."""
        page = self.page(title, nmi, tsne_points)
        write_text(folder / "results.json", json.dumps(self.record(), allow_nan=False) + "\n")
        write_text(folder / "table.md", page.markdown())
        report.write(folder / "report.html", page)
        return page
