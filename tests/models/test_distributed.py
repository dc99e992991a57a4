"""Two processes as torchrun starts them train the same network as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import classify, cluster, distributed

ROOT = Path(distributed.__file__).parents[1]
# Without batch normalisation, whose statistics are each process's own.
TINY = [
    "--data", "digits", "--limit", "200", "--width", "0.2", "--no-batch-norm", "--epochs", "2",
    "--device", "cpu", "--tsne-points", "40",
]  # fmt: skip
# Clustering: each process has 25 of the 50 images of a batch, so every second pair is of two
# processes. Classification: the processes have 3 and 2 of the 5 images of a batch.
FIGURES = ("loss", "fc1_similar_loss", "fc3_active_fraction")
PAIRS = (cluster, ["--batch-size", "50", "--variant", "C"], FIGURES)
ENTROPY = (classify, ["--batch-size", "5", "--lr", "0.005"], ("loss",))


@pytest.mark.parametrize(("program", "options", "figures"), [PAIRS, ENTROPY])
def test_two_processes_train_as_one(program, options, figures, tmp_path, monkeypatch, capsys):
    tiny = [*TINY, *options]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # What torchrun sets; this process is number 0.
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    arguments = [*tiny, "--out", str(tmp_path / "two")]
    other = subprocess.Popen(
        [sys.executable, "-m", program.__name__, *arguments],
        cwd=ROOT,
        env={**os.environ, **world, "RANK": "1", "LOCAL_RANK": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with monkeypatch.context() as patch:
        for name, value in {**world, "RANK": "0", "LOCAL_RANK": "0"}.items():
            patch.setenv(name, value)
        assert program.main(arguments) == 0
    printed, _ = other.communicate(timeout=600)
    assert (other.returncode, printed) == (0, "")
    assert "report.html shows it all" in capsys.readouterr().out
    assert program.main([*tiny, "--out", str(tmp_path / "one")]) == 0

    one, two = (
        torch.load(tmp_path / name / "weights.pt", weights_only=True)["model"]
        for name in ("one", "two")
    )
    torch.testing.assert_close(two, one)
    one, two = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two"))
    assert (one["versions"]["processes"], two["versions"]["processes"]) == ("1", "2")
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        for name in figures:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4)


def test_alone_nothing_is_shared():
    model = torch.nn.Linear(2, 2)
    assert distributed.shared(model) is model
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    values = torch.arange(3.0)
    torch.testing.assert_close(distributed.sum_over_processes(values.clone()), values)
    with distributed.process_group(torch.device("cpu")), distributed.main_process_first():
        distributed.wait_for_all()
