"""Pages stand alone, escape what they show, and have a picture for everything."""

import re
from dataclasses import replace

import pytest

from models import report
from models.recipe import Recipe
from models.run import EndedRun, run

RECIPE = Recipe(data="digits", width=0.1, epochs=2, batch_size=20, milestones=())


@pytest.fixture
def ended(prototypes, tmp_path):
    """A classification and a clustering of variant C."""
    cluster = RECIPE.with_values(task="clustering", variant="C")
    run(RECIPE, prototypes, tmp_path / "a", title="entropy", command="first")
    run(cluster, prototypes, tmp_path / "b", title="clusters", command="second")
    return [EndedRun.read(tmp_path / name) for name in "ab"]


def test_a_page_stands_alone(ended, tmp_path):
    report.write(tmp_path / "page.html", report.of_run(ended[1], tsne_points=30))
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert page.count('src="data:image/png;base64,iVBOR') == 4  # t-SNE, curves, pairs, confusion
    assert not re.search(r'(src|href)="(?!data:)|url\(', page)
    assert "0.4 x fc1 (group), 0.2 x fc2 (kind), 0.4 x fc3 (kind)" in page


def test_a_page_escapes_what_it_shows(ended, tmp_path):
    page = replace(
        report.of_run(ended[0], tsne_points=30), command="--out <script>alert(1)</script>"
    )
    report.write(tmp_path / "page.html", page)
    assert "<script>" not in (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;" in (tmp_path / "page.html").read_text()


def test_pairs_are_drawn_for_clusterings_alone(ended):
    headings = [[s.heading for s in report.pictures(r, r, 30)] for r in (ended[:1], ended)]
    assert "The pairs" not in headings[0]
    assert headings[1] == ["What the last layer sees", "Learning curves", "The pairs", "Confusion"]


def test_text_and_markdown_have_the_tables(ended):
    page = report.of_run(ended[1], tsne_points=30)
    accuracy = f"{100 * ended[1].results['scores']['accuracy']['value']:.2f}"
    assert re.search(rf"^Accuracy +{accuracy} \[", page.text(), re.MULTILINE)
    assert f"| Accuracy | {accuracy} [" in page.markdown()
    assert page.markdown().endswith("`second`\n")
