"""Recipes: the paper's tables, whole files, overrides, and what is refused."""

import pytest

from models.recipe import RECIPES, Recipe, RecipeError, load

CIFAR10 = {
    "network": "lenet", "epochs": 95, "milestones": (25, 50, 75, 100),
    "batch_size": 16, "weight_decay": 5e-4,
}  # fmt: skip
BIRDSNAP34 = {
    "network": "alexnet", "epochs": 195, "milestones": (50, 100, 150, 200),
    "batch_size": 128, "weight_decay": 5e-4,
}  # fmt: skip
# Tables 6-10 of the paper, by number and data set.
PAPER = {
    (6, "cifar10"): CIFAR10,
    (6, "birdsnap34"): BIRDSNAP34 | {"batch_size": 16, "weight_decay": 1e-3},
    (7, "cifar10"): CIFAR10 | {"variant": "A"},
    (7, "birdsnap34"): BIRDSNAP34 | {"batch_size": 1024, "weight_decay": 1e-3, "variant": "A"},
    (8, "cifar10"): CIFAR10 | {"variant": "B", "loss_weights": (0.2, 0.8)},
    (8, "birdsnap34"): BIRDSNAP34 | {"variant": "B", "loss_weights": (0.2, 0.8)},
    (9, "cifar10"): CIFAR10 | {"variant": "C", "loss_weights": (0.4, 0.2, 0.4)},
    (9, "birdsnap34"): BIRDSNAP34 | {"variant": "C", "loss_weights": (0.4, 0.2, 0.4)},
    (10, "cifar10"): CIFAR10 | {"variant": "D", "loss_weights": (0.4, 0.2, 0.4)},
    (10, "birdsnap34"): BIRDSNAP34 | {"variant": "D", "loss_weights": (0.4, 0.2, 0.4)},
}


@pytest.mark.parametrize(("table", "data"), PAPER)
def test_every_row_of_the_papers_tables_has_its_recipe(table, data):
    recipe = load(f"table{table}-{data}")
    for name, value in PAPER[table, data].items():
        assert getattr(recipe, name) == value
    assert recipe.data == data
    assert (recipe.lr, recipe.lr_factor, recipe.momentum, recipe.margin) == (0.01, 0.5, 0.9, 2.0)
    assert recipe.clusters == (table != 6)
    # Not in the paper: LeNet has batch normalisation, AlexNet is torchvision's.
    assert recipe.batch_norm == (data == "cifar10")


def test_there_is_no_other_recipe():
    names = {f"table{table}-{data}" for table, data in PAPER}
    assert {path.stem for path in RECIPES.glob("*.toml")} == names


def test_a_written_recipe_is_read_back_whole(tmp_path):
    recipe = load("table9-birdsnap34").with_values(
        lr=1e-07, milestones=(), imagenet='a "quoted" \\ é path', amp=True
    )
    recipe.save(tmp_path / "recipe.toml")
    assert load(tmp_path / "recipe.toml") == recipe
    assert len((tmp_path / "recipe.toml").read_text().splitlines()) == len(recipe.plain())


def test_any_text_is_read_back(tmp_path):
    for text in ("\N{BIRD}.csv", "\x7f", "\x01\n\t", "a\\u007f"):
        recipe = Recipe(classes_csv=text, levels=(text,))
        recipe.save(tmp_path / "recipe.toml")
        assert load(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(95, (25, 50, 75, 100)), (19, (5, 10, 15, 20)), (5, (1, 3, 4, 5)), (1, (1,))],
)
def test_milestones_keep_their_place_in_a_run_of_another_length(epochs, expected):
    assert load("table6-cifar10").with_values(epochs=epochs).milestones == expected


def test_given_milestones_stay():
    recipe = load("table6-cifar10").with_values(epochs=19, milestones=(7,))
    assert recipe.milestones == (7,)


def test_another_variant_brings_its_own_loss_weights():
    recipe = load("table8-cifar10").with_values(variant="C")
    assert recipe.loss_weights == (0.4, 0.2, 0.4)
    assert [tap.layer for tap in recipe.taps] == ["fc1", "fc2", "fc3"]
    assert load("table6-cifar10").with_values(variant="C").loss_weights == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 1}, "batch_size: expected int of at least 2, got 1"),
        ({"batch_size": 16.0}, "batch_size: expected int of at least 2, got 16.0"),
        ({"epochs": 0}, "epochs: expected int of at least 1, got 0"),
        ({"epochs": True}, "epochs: expected int of at least 1, got True"),
        ({"lr": float("nan")}, "lr: expected float of at least 0, got nan"),
        ({"lr": "0.1"}, "lr: expected float of at least 0, got '0.1'"),
        ({"amp": 1}, "amp: expected bool, got 1"),
        ({"milestones": (0,)}, r"milestones: expected int list of at least 1, got \(0,\)"),
        ({"milestones": 3}, "milestones: expected int list of at least 1, got 3"),
        ({"variant": "E"}, "variant: expected one of A, B, C, D, got 'E'"),
        ({"classes_csv": "\udcff"}, r"classes_csv: expected str, got '\\udcff'"),
        ({"data": "mnist"}, "data: expected one of digits, .*, got 'mnist'"),
        (
            {"precision": "bf16"},
            "precision: expected one of fp32, tf32x3, bf16x3, tf32, got 'bf16'",
        ),
        ({"loss_weights": (1.0, 2.0)}, r"loss_weights: expected 1 for variant A \(fc3\), got 2"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(RecipeError, match=f"^{message}$"):
        Recipe(**values)


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "mine.toml"
    with pytest.raises(RecipeError, match=r"mine\.toml: .*No such file"):
        load(path)
    path.write_text("epochs = ")
    with pytest.raises(RecipeError, match=r"mine\.toml: "):
        load(path)
    path.write_text("epoch = 3")
    with pytest.raises(RecipeError, match=r"mine\.toml: epoch: expected one of .*epochs"):
        load(path)
    with pytest.raises(RecipeError, match=r"recipe: expected .*table10-cifar10.*; got table11"):
        load("table11")


def test_what_a_file_leaves_out_has_its_default(tmp_path):
    (tmp_path / "short.toml").write_text("epochs = 3\nmilestones = [1]\n")
    assert load(tmp_path / "short.toml") == Recipe(epochs=3, milestones=(1,))
