"""Pages stand alone, escape what they show, and have a picture for everything."""

import re
from dataclasses import replace

import pytest

from models import plots, report
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


def curves(axis):
    """Colour and style of all curves."""
    return [(line.get_color(), line.get_linestyle()) for line in axis.lines]


@pytest.mark.parametrize("rows", [7, 10])
def test_every_row_of_a_table_has_its_own_curve(ended, rows):
    entropy, clusters = ended
    warm = replace(entropy, results={**entropy.results, "start": clusters.results["recipe"]})
    figure = plots.curves_figure([entropy, *[clusters, warm] * rows, entropy])
    found = curves(figure.axes[0])
    assert len(set(found)) == len(found) == 2 * rows + 2
    colours = [colour for colour, _ in found]
    assert colours[1:-1:2] == colours[2:-1:2]  # a warm start's is its clustering's
    assert len(set(colours)) == rows + 2


def test_each_kind_of_loss_is_drawn_and_named(ended):
    parts = ["dissimilar pairs", "similar pairs"]
    for runs, kinds in ((ended[:1], ["cross-entropy"]), (ended[1:], parts)):
        figure = plots.curves_figure(runs)
        assert figure.get_size_inches().tolist() == [10.0, 3.6]
        loss = figure.axes[1]
        names = [PARTS_OF_LOSS[kind] for kind in kinds]
        expected = [[record[name] for record in runs[0].results["history"]] for name in names]
        assert [list(line.get_ydata()) for line in loss.lines] == expected
        assert [text.get_text() for text in loss.get_legend().get_texts()] == kinds
        assert loss.get_title().endswith(", nats")
        figure.draw_without_rendering()
        box = loss.title.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


PARTS_OF_LOSS = {
    "cross-entropy": "loss",
    "dissimilar pairs": "fc3_dissimilar_loss",
    "similar pairs": "fc3_similar_loss",
}


def test_text_and_markdown_have_the_tables(ended):
    page = report.of_run(ended[1], tsne_points=30)
    accuracy = f"{100 * ended[1].results['scores']['accuracy']['value']:.2f}"
    assert re.search(rf"^Accuracy +{accuracy} \[", page.text(), re.MULTILINE)
    assert f"| Accuracy | {accuracy} [" in page.markdown()
    assert page.markdown().endswith("`second`\n")
