"""The profile measures the step that training takes."""

import json

import torch

from models import profile
from models.recipe import load


def test_the_measured_step_is_the_training_step():
    recipe = load("table9-cifar10").with_values(width=0.1, batch_norm=False)
    data = profile._random_data(recipe, torch.device("cpu"))
    images, labels = next(data.train.batches(recipe.batch_size))
    networks = [profile.run.build(recipe, data).train() for _ in range(2)]
    optimizers = [torch.optim.SGD(n.parameters(), 0.01, momentum=0.9) for n in networks]
    objective = profile.run.objective(recipe)
    for _ in range(2):
        total, loss_seconds = profile._timed_step(
            networks[0], objective, optimizers[0], images, labels, recipe
        )
        loss, _ = objective(networks[1](images), labels)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
    assert 0 < loss_seconds < total
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict())


def test_shares_by_recipe(tmp_path, capsys):
    out = tmp_path / "shares.json"
    arguments = ["table6-cifar10", "table8-cifar10", "--steps", "2", "--device", "cpu"]
    assert profile.main([*arguments, "--batch-size", "4", "--out", str(out)]) == 0
    shares = json.loads(out.read_text())["shares"]
    assert [(s["recipe"], s["batch_size"]) for s in shares] == [
        ("table6-cifar10", 4), ("table8-cifar10", 4),
    ]  # fmt: skip
    printed = capsys.readouterr().out
    for share in shares:
        assert f"{100 * share['loss'] / share['step']:.2f} %" in printed
