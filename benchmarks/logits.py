"""The logits that are benchmarked. How many pairs are active decides what a method can skip.

random        normal, standard deviation 3: a few per cent of the dissimilar pairs are active
half          the same, scaled until half of them are: the hardest case
real-early    from a training with this loss, on real images: after its first steps,
real-middle   in the middle,
real-late     and near its end
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import pairloss
from benchmarks.pair_kl_hinge import CLASSES, MARGIN, Case

# models needs torchvision and more; only the real logits do.
if TYPE_CHECKING:
    from models.data import ImageData

STAGES = ("early", "middle", "late")
REAL = tuple(f"real-{stage}" for stage in STAGES)
KINDS = ("random", "half", *REAL)

CACHE = Path("runs") / "benchmarks"
DATA_ROOT = Path("data")
# Steps of 128 images: with Fashion-MNIST's 60000 the last is the end of the third epoch.
STEPS = (5, 150, 1400)
BATCH = 128


def make(case: Case, cache: Path = CACHE) -> tuple[Tensor, Tensor]:
    """Logits (rows, columns) in the case's dtype and labels (rows,), on its device."""
    if case.logits.startswith("real-"):
        stage = case.logits.removeprefix("real-")
        logits, labels = real(case.rows, case.columns, stage, cache)
    else:
        logits, labels = random(case.rows, case.columns)
    logits, labels = logits.to(case.device), labels.to(case.device)
    if case.logits == "half":
        logits = logits * half_active_scale(logits, labels)
    return logits.to(getattr(torch, case.dtype)), labels


def random(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, columns, generator=generator)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    return logits, labels


def half_active_scale(logits: Tensor, labels: Tensor, tolerance: float = 0.005) -> float:
    """The factor for ``logits`` with which half of the dissimilar pairs are inside the margin."""
    low, high = 0.0, 64.0  # all active, and hardly any
    while True:
        middle = (low + high) / 2
        fraction = active_fraction(logits * middle, labels)
        if abs(fraction - 0.5) <= tolerance or high - low < 1e-6:
            return middle
        low, high = (middle, high) if fraction > 0.5 else (low, middle)


def active_fraction(logits: Tensor, labels: Tensor) -> float:
    _, stats = pairloss.pair_kl_hinge_loss(logits, labels, margin=MARGIN, return_stats=True)
    return float(stats.active_fraction)


def real(
    rows: int,
    columns: int,
    stage: str,
    cache: Path = CACHE,
    data: ImageData | None = None,
    steps: Sequence[int] = STEPS,
) -> tuple[Tensor, Tensor]:
    """Outputs of a LeNet with a last layer of ``columns``, caught at a stage of its training.

    The networks are trained once (Fashion-MNIST where it is found, else scikit-learn's digits) and
    kept in ``cache``. More rows than there are images: the images again, moved by some pixels.
    """
    from models.networks import lenet

    if data is None:
        data = _data()
    path = cache / f"logits-of-lenet-{data.title.replace(' ', '-')}-{columns}-{steps[-1]}.pt"
    if not path.exists():
        states = dict(zip(STAGES, _train(data, columns, steps), strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(states, path)
    model = lenet(data.in_shape, columns)
    model.load_state_dict(torch.load(path, weights_only=True)[stage])
    return _outputs(model, data, rows)


def _data() -> ImageData:
    from models.data import DataError, load

    try:
        return load("fashion-mnist", DATA_ROOT)
    except DataError:
        return load("digits", DATA_ROOT)


def _train(data: ImageData, columns: int, steps: Sequence[int]) -> list[dict[str, Tensor]]:
    """The weights after each of ``steps``, with the demo's recipe."""
    from models.networks import lenet

    print(f"Training on {data.title} for logits of {columns} columns ...", file=sys.stderr)
    torch.manual_seed(0)
    model = lenet(data.in_shape, columns)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    states = []
    step = 0
    while step < steps[-1]:
        for images, labels in data.train.shuffled_batches(BATCH):
            outputs = model(images)["fc3"]
            loss = pairloss.pair_kl_hinge_loss(outputs, labels[:, 0], margin=MARGIN)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step in steps:
                states.append(copy.deepcopy(model.state_dict()))
            if step == steps[-1]:
                break
    return states


@torch.no_grad()
def _outputs(model: nn.Module, data: ImageData, rows: int) -> tuple[Tensor, Tensor]:
    """Of the first ``rows`` images in a random order, as in training: with batch statistics."""
    model.train()
    train = data.train.in_memory()
    (padding, _) = next(train.batches(BATCH))
    generator = torch.Generator().manual_seed(0)
    outputs, labels = [], []
    missing = rows
    while missing > 0:
        order = torch.randperm(len(train), generator=generator)[:missing]
        moved = [int(shift) for shift in torch.randint(-2, 3, (2,), generator=generator)]
        for images, of_images in train.subset(order).batches(1024):
            if missing < rows:
                images = images.roll(moved, dims=(2, 3))
            # A batch by itself would be normalised by its own few images.
            padded = torch.cat([images, padding])
            outputs.append(model(padded)["fc3"][: len(images)])
            labels.append(of_images[:, 0])
        missing -= len(order)
    return torch.cat(outputs), torch.cat(labels)
