"""One HTML page for one run: everything embedded, so that it can be sent as a file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

from models import summary


def render(results: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """The page of ``results``; ``pictures`` are PNG files by the name the template uses."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    embedded = {
        name: "data:image/png;base64," + base64.b64encode(content).decode()
        for name, content in pictures.items()
    }
    return environment.get_template("report.html.jinja").render(
        results=results,
        phases=results["phases"],
        classes=results["data"]["classes"],
        table_1=summary.table_1(results),
        full_table=summary.full_table(results),
        confusion=_confusion(results),
        facts=_facts(results),
        pictures=embedded,
    )


def _confusion(results: dict[str, Any]) -> list[tuple[str, list[tuple[int, float]]]]:
    """For each class its name and, by assigned cluster, the count and its share of the class."""
    rows = results["phases"]["clustering"]["scores"]["confusion"]
    return [
        (name, [(count, count / max(1, sum(row))) for count in row])
        for name, row in zip(results["data"]["classes"], rows, strict=True)
    ]


def _facts(results: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What the run was, by heading."""
    data = {k: v for k, v in results["data"].items() if k not in ("classes", "name")}
    parts = {
        "Data": data,
        "Network": results["network"],
        "Recipe": results["recipe"],
        "Versions": results["versions"],
    }
    return {
        heading: {key.replace("_", " "): _plain(value) for key, value in part.items()}
        for heading, part in parts.items()
    }


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)
