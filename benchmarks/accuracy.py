"""Errors of loss and gradient against float64: ``python -m benchmarks.accuracy``.

The truth is the matrix form in float64. The margin is moved (by less than 1 %) to where no pair is
close to it, because any float32 form may take a pair within 1e-5 of the hinge's kink for the other
kind. Errors are relative: of the loss to the loss, of the gradient to its largest element.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import baselines, logits, table
from benchmarks.baselines import Loss
from benchmarks.pair_kl_hinge import CLASSES, MARGIN, METHODS

ROWS = 256
COLUMNS = (10, 128)
SCALES = {"scale 0.001": 0.001, "normal": 1.0, "scale 100": 100.0}
PAIRS = ("all similar", "mixed", "all dissimilar")
METHOD_NAMES = ("pairloss", "eager")


class Errors(NamedTuple):
    loss: float
    grad: float


GOAL = Errors(loss=1e-6, grad=1e-5)
# Logits of this scale that are rounded to float32 themselves carry no more.
GOAL_NEAR_UNIFORM = Errors(loss=1e-6, grad=1e-3)


def measure(loss: Loss, batch: tuple[Tensor, Tensor], margin: float) -> Errors:
    values, labels = batch
    truth, truth_grad = _loss_and_grad(baselines.eager, values.double(), labels, margin)
    result, grad = _loss_and_grad(loss, values, labels, margin)
    return Errors(_relative(result, truth), _relative(grad, truth_grad))


def _loss_and_grad(
    loss: Loss, values: Tensor, labels: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    leaf = values.detach().requires_grad_()
    result = loss(leaf, labels, margin)
    return result.detach().double(), torch.autograd.grad(result, leaf)[0].double()


def _relative(actual: Tensor, truth: Tensor) -> float:
    """Where all of the truth is 0: absolute."""
    size = float(truth.abs().max())
    return float((actual - truth).abs().max()) / (size or 1.0)


def margin_in_a_gap(values: Tensor, near: float = MARGIN, width: float = 4e-5) -> float:
    """The middle of the gap between two divergences that is the nearest wide one."""
    log_p = values.double().log_softmax(1)
    p = log_p.exp()
    divergences = ((p * log_p).sum(1, keepdim=True) - p @ log_p.T).flatten()
    edges = torch.cat([divergences, divergences.new_tensor([-1.0, float("inf")])]).sort().values
    wide = edges.diff() > width
    low, high = edges[:-1][wide] + width / 2, edges[1:][wide] - width / 2
    candidates = torch.full_like(low, near).clamp(low, high)
    return float(candidates[(candidates - near).abs().argmin()])


def make_labels(pairs: str, labels: Tensor) -> Tensor:
    if pairs == "mixed":
        return labels
    return torch.zeros_like(labels) if pairs == "all similar" else torch.arange(len(labels))


def make_logits(kind: str, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    if kind in logits.REAL:
        return logits.real(rows, columns, kind.removeprefix("real-"))
    generator = torch.Generator().manual_seed(0)
    values = SCALES[kind] * torch.randn(rows, columns, generator=generator)
    return values, torch.randint(CLASSES, (rows,), generator=generator)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = (*SCALES, *logits.REAL)
    add = parser.add_argument
    add("--rows", type=int, default=ROWS, metavar="N")
    add("--columns", nargs="+", type=int, default=COLUMNS, metavar="K")
    add("--logits", nargs="+", choices=kinds, default=kinds)
    add("--methods", nargs="+", choices=METHODS, default=METHOD_NAMES, metavar="NAME")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--markdown", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    rows = []
    missed = False
    for columns in arguments.columns:
        for kind in arguments.logits:
            values, labels = make_logits(kind, arguments.rows, columns)
            margin = margin_in_a_gap(values)
            goal = GOAL_NEAR_UNIFORM if kind == "scale 0.001" else GOAL
            for pairs in PAIRS:
                batch = (
                    values.to(arguments.device),
                    make_labels(pairs, labels).to(arguments.device),
                )
                cells: list[str] = []
                for name in arguments.methods:
                    errors = measure(METHODS[name].make(), batch, margin)
                    cells += [f"{errors.loss:.1e}", f"{errors.grad:.1e}"]
                    late = errors.loss > goal.loss or errors.grad > goal.grad
                    missed |= late and name == "pairloss"
                rows.append((f"K = {columns}, {kind}", pairs, *cells))
    header = [f"{part}, {name}" for name in arguments.methods for part in ("loss", "gradient")]
    print(table.render(rows, ("logits", "pairs", *header), arguments.markdown))
    print(
        f"\nN = {arguments.rows}. Goal: loss {GOAL.loss:.0e}, gradient {GOAL.grad:.0e} "
        f"(scale 0.001: {GOAL_NEAR_UNIFORM.grad:.0e})."
    )
    if missed:
        print("pairloss misses it.")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
