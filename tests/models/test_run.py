"""One run from recipe to folder: what is written, the warm start, a resume, what is refused."""

import json
import re
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

import pairloss
from models import run as runs
from models.checkpoint import CheckpointError
from models.data import ImageData, Level
from models.recipe import Recipe, RecipeError, load
from models.run import EndedRun, objective, read_recipe, run
from models.training import NonFiniteLossError
from pairloss import pair_kl_hinge_loss

RECIPE = Recipe(
    data="digits", width=0.5, epochs=2, batch_size=20, milestones=(1,), task="clustering"
)


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)["model"]


def test_everything_is_written(prototypes, tmp_path):
    results = run(RECIPE, prototypes, tmp_path, title="mine", command="python ...")
    names = ["outputs.pt", "recipe.toml", "results.json", "weights.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert load(tmp_path / "recipe.toml") == read_recipe(tmp_path) == RECIPE
    assert (results["title"], results["command"]) == ("mine", "python ...")
    assert [record["epoch"] for record in results["history"]] == [1, 2]
    assert results["versions"]["torch"] == torch.__version__
    assert results["data"]["levels"] == {"kind": ["a", "b", "c", "d"], "group": ["ab", "cd"]}

    ended = EndedRun.read(tmp_path)
    assert ended.outputs.shape == (40, 4)
    assert ended.labels.tolist() == [i % 4 for i in range(40)]
    assert ended.classes == ["a", "b", "c", "d"]
    assert ended.clusters
    # The scores are those of the outputs, after the last epoch.
    scores = results["scores"]
    assert scores["accuracy"]["n"] == sum(map(sum, scores["confusion"])) == 40
    assert scores["accuracy"]["correct"] == sum(scores["confusion"][i][i] for i in range(4))
    assert scores["accuracy"]["value"] == results["history"][-1]["accuracy"]
    assert scores["clusters_in_use"] == len(ended.outputs.argmax(1).unique())


@pytest.mark.parametrize("variant", "ABCD")
def test_every_variant_learns_and_warm_starts(prototypes, tmp_path, variant):
    recipe = RECIPE.with_values(variant=variant, epochs=10)
    results = run(recipe, prototypes, tmp_path / "cluster")
    for tap in recipe.taps:
        losses = [
            r[f"{tap.layer}_similar_loss"] + r[f"{tap.layer}_dissimilar_loss"]
            for r in results["history"]
        ]
        assert losses[-1] < 0.95 * losses[0]
    assert results["history"][-1]["loss"] < 0.6 * results["history"][0]["loss"]
    warm = recipe.with_values(task="classification", loss_weights=(), epochs=3)
    results = run(warm, prototypes, tmp_path / "warm", start=tmp_path / "cluster")
    assert results["scores"]["accuracy"]["value"] > 0.9
    assert results["start"] == recipe.plain()
    assert weights(tmp_path / "warm").keys() == weights(tmp_path / "cluster").keys()
    assert any("skip" in name for name in weights(tmp_path / "warm")) == (variant == "D")


def test_a_warm_start_begins_with_the_clusterings_last_weights(prototypes, tmp_path):
    run(RECIPE, prototypes, tmp_path / "cluster")
    still = RECIPE.with_values(task="classification", lr=0.0, momentum=0.0, epochs=1)
    run(still, prototypes, tmp_path / "warm", start=tmp_path / "cluster")
    begun = {
        n: w for n, w in weights(tmp_path / "cluster").items() if n.endswith(("weight", "bias"))
    }
    kept = {name: weights(tmp_path / "warm")[name] for name in begun}
    torch.testing.assert_close(kept, begun, rtol=0, atol=0)


def test_equal_seeds_give_equal_weights_and_others_do_not(prototypes, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        run(RECIPE.with_values(seed=seed), prototypes, tmp_path / name)
    one, again, other = (weights(tmp_path / name) for name in ("one", "again", "other"))
    torch.testing.assert_close(again, one, rtol=0, atol=0)
    assert not torch.equal(other["head.fc3.weight"], one["head.fc3.weight"])


def test_the_largest_seed(prototypes, tmp_path):
    recipe = RECIPE.with_values(seed=2**37)
    assert run(recipe, prototypes, tmp_path)["recipe"]["seed"] == 2**37


def test_an_ended_run_is_only_read(prototypes, tmp_path, monkeypatch):
    first = run(RECIPE, prototypes, tmp_path)
    monkeypatch.setattr(runs, "train", None)
    assert run(RECIPE, prototypes, tmp_path, resume=True) == first
    older = {
        k: v for k, v in first["recipe"].items() if k != "balance"
    }  # from before there was one
    (tmp_path / "results.json").write_text(json.dumps({**first, "recipe": older}))
    run(RECIPE, prototypes, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"results\.json is of .*lr was 0\.01, now 0\.5"):
        run(RECIPE.with_values(lr=0.5), prototypes, tmp_path, resume=True)


def fewer(data):
    return replace(data, train=data.train.subset(torch.arange(96)))


def relabelled(data):
    return replace(data, train=data.train.with_labels(data.train.labels.roll(1, 0)))


def renamed(data):
    return replace(data, levels=(Level("kind", ("a", "b", "c", "e")), data.levels[1]))


OTHER_DATA = {
    fewer: r"images\.train_images was 100, now 96[.;]",
    relabelled: r"images\.fingerprint was '\w{16}', now '\w{16}'\. ",
    renamed: r"images\.levels\.kind was \['a', 'b', 'c', 'd'\], now \['a', 'b', 'c', 'e'\][.;]",
}


@pytest.mark.parametrize("change", OTHER_DATA)
@pytest.mark.parametrize("file", ["results.json", "checkpoint.pt"])
def test_a_run_does_not_go_on_with_other_data(prototypes, tmp_path, monkeypatch, change, file):
    if file == "checkpoint.pt":
        monkeypatch.setattr(runs, "_write", disk_full)
    with suppress(OSError):
        run(RECIPE, prototypes, tmp_path)
    with pytest.raises(CheckpointError) as error:
        run(RECIPE, change(prototypes), tmp_path, resume=True)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / file} is of a run with other settings: images.")
    assert re.search(OTHER_DATA[change], message)
    assert "with the old data), or start over: in another folder (--out)" in message


def disk_full(*args, **options):
    raise OSError


def test_results_from_before_there_were_fingerprints(prototypes, tmp_path):
    first = run(RECIPE, prototypes, tmp_path)
    del first["data"]["fingerprint"]
    (tmp_path / "results.json").write_text(json.dumps(first))
    assert run(RECIPE, prototypes, tmp_path, resume=True) == first
    for change in (fewer, renamed):
        with pytest.raises(CheckpointError, match=OTHER_DATA[change]):
            run(RECIPE, change(prototypes), tmp_path, resume=True)


def test_a_checkpoint_from_before_there_was_a_setting(prototypes, tmp_path, monkeypatch):
    run(RECIPE, prototypes, tmp_path / "start")
    start = {"start": tmp_path / "start"}
    whole = run(RECIPE, prototypes, tmp_path / "whole", **start)
    with monkeypatch.context() as patch, suppress(OSError):
        patch.setattr(runs, "_write", disk_full)
        run(RECIPE, prototypes, tmp_path / "run", **start)
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    for of_one in (state["settings"], state["settings"]["start"]):
        del of_one["balance"]
    del state["settings"]["images"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is .*: balance was 'none', now"):
        other = RECIPE.with_values(balance="pairs")
        run(other, prototypes, tmp_path / "run", resume=True, **start)
    assert (
        run(RECIPE, prototypes, tmp_path / "run", resume=True, **start)["scores"]
        == (whole["scores"])
    )


@pytest.mark.parametrize("precision", ["fp32", "tf32x3", "bf16x3", "tf32"])
@pytest.mark.parametrize("balance", ["none", "pairs"])
def test_what_a_recipe_says_of_the_loss_reaches_it(monkeypatch, precision, balance):
    said = {"margin": 1.5, "gradient": "both", "precision": precision, "impl": "reference"}
    heard = []

    def listen(*args, **options):
        heard.append(options)
        return pair_kl_hinge_loss(*args, **options)

    monkeypatch.setattr(pairloss, "pair_kl_hinge_loss", listen)
    recipe = RECIPE.with_values(variant="B", balance=balance, **said)
    outputs = {name: torch.eye(4) for name in ("fc2", "fc3")}
    objective(recipe)(outputs, torch.zeros(4, 1, dtype=torch.int64))
    said["balance"] = None if balance == "none" else balance
    assert len(heard) == 2
    assert all(options.items() >= said.items() for options in heard)


def test_a_new_run_does_not_leave_old_results_beside_it(prototypes, tmp_path):
    run(RECIPE, prototypes, tmp_path)
    with pytest.raises(NonFiniteLossError):
        run(RECIPE.with_values(lr=1e30), prototypes, tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_a_last_step_that_diverges_leaves_no_results(prototypes, tmp_path):
    """One step an epoch: its loss is that of the weights before it."""
    recipe = RECIPE.with_values(epochs=1, batch_size=100, lr=1e30)
    message = r"outputs are NaN or infinite for \d+ of 40 images\. A lower --lr may help\."
    with pytest.raises(NonFiniteLossError, match=message):
        run(recipe, prototypes, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "recipe.toml"}
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"] == []


def test_coarse_labels_must_be_there(prototypes, tmp_path):
    flat = ImageData("flat", prototypes.levels[:1], prototypes.train, prototypes.test)
    with pytest.raises(RecipeError, match="variant: C needs coarse labels, and flat has only kind"):
        run(RECIPE.with_values(variant="C"), flat, tmp_path)


def test_a_network_that_cannot_take_the_images_is_named(prototypes, tmp_path):
    with pytest.raises(RecipeError, match="alexnet cannot take prototypes: .*at least 63 x 63"):
        run(RECIPE.with_values(network="alexnet"), prototypes, tmp_path)


def test_weights_of_another_network_are_refused(prototypes, tmp_path):
    run(RECIPE, prototypes, tmp_path / "cluster")
    wider = RECIPE.with_values(width=1.0)
    with pytest.raises(CheckpointError, match=r"weights\.pt is of another network"):
        run(wider, prototypes, tmp_path / "warm", start=tmp_path / "cluster")
    with pytest.raises(CheckpointError, match="nowhere has no results.json: no run has ended"):
        run(RECIPE, prototypes, tmp_path / "warm", start=tmp_path / "nowhere")
