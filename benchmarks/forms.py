"""The forms of the loss beside what a user would write: ``python -m benchmarks.forms``.

Forward and backward of levels, reference sets, similarity matrices, weights and lists of pairs,
each with the same form in well written PyTorch (one matrix product for all divergences, or a gather
of the listed rows), interleaved in one process. A new form is a function in :data:`FORMS`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

import pairloss
from benchmarks import table
from benchmarks.__main__ import parse_size
from benchmarks.timing import Step, Timer, interleave, spread

SIZES = ((1024, 34), (4096, 128))
MARGIN = 2.0
CLASSES = 10

Methods = dict[str, Callable[[Tensor], Tensor]]


def divergences(logits: Tensor, others: Tensor) -> Tensor:
    """KL(P_i || Q_j), (N, M), as one matrix product."""
    log_p, log_q = functional.log_softmax(logits, 1), functional.log_softmax(others, 1)
    p = log_p.exp()
    return (p * log_p).sum(1, keepdim=True) - p @ log_q.T


def terms(divergence: Tensor, similar: Tensor) -> Tensor:
    return torch.where(similar, divergence, (MARGIN - divergence).clamp(min=0))


def levels(logits: Tensor) -> Methods:
    """Two levels of labels, the second one coarser."""
    rows = len(logits)
    fine = torch.randint(0, CLASSES, (rows,), device=logits.device)
    labels, weights = torch.stack([fine, fine // 3], 1), (0.6, 0.4)

    def eager(z: Tensor) -> Tensor:
        divergence = divergences(z, z)
        total = z.new_zeros(())
        for g, weight in enumerate(weights):
            similar = labels[:, None, g] == labels[None, :, g]
            total = total + weight * terms(divergence, similar).sum()
        return total * (2 / (rows * (rows - 1)))

    def a_call_each(z: Tensor) -> Tensor:
        losses = [pairloss.pair_kl_hinge_loss(z, labels[:, g], margin=MARGIN) for g in range(2)]
        return weights[0] * losses[0] + weights[1] * losses[1]

    def ours(z: Tensor) -> Tensor:
        return pairloss.pair_kl_hinge_loss(z, labels, margin=MARGIN, level_weights=weights)

    return {"pairloss": ours, "a call each": a_call_each, "eager": eager}


def reference_set(logits: Tensor) -> Methods:
    """A memory of four times the batch."""
    labels = torch.randint(0, CLASSES, (len(logits),), device=logits.device)
    ref = torch.randn(4 * len(logits), logits.shape[1], device=logits.device) * 3
    ref_labels = torch.randint(0, CLASSES, (len(ref),), device=logits.device)

    def eager(z: Tensor) -> Tensor:
        similar = labels[:, None] == ref_labels
        there = terms(divergences(z, ref), similar).sum()
        return (there + terms(divergences(ref, z), similar.T).sum()) / similar.numel()

    def ours(z: Tensor) -> Tensor:
        return pairloss.pair_kl_hinge_loss(z, labels, ref, ref_labels, margin=MARGIN)

    return {"pairloss": ours, "eager": eager}


def similarity_matrix(logits: Tensor) -> Methods:
    """int8, symmetric, a third of the pairs unknown."""
    rows = len(logits)
    half = torch.randint(-1, 2, (rows, rows), device=logits.device).triu(1)
    matrix = (half + half.T).to(torch.int8)

    def eager(z: Tensor) -> Tensor:
        of_pairs = terms(divergences(z, z), matrix > 0) * (matrix != 0)
        return of_pairs.sum() * (2 / (matrix != 0).sum())

    def ours(z: Tensor) -> Tensor:
        loss = pairloss.pair_kl_hinge_loss_from_similarity(z, matrix, margin=MARGIN)
        assert isinstance(loss, Tensor)
        return loss

    return {"pairloss": ours, "eager": eager}


def weights(logits: Tensor) -> Methods:
    """Balanced kinds, and a weight for every row."""
    rows = len(logits)
    labels = torch.randint(0, CLASSES, (rows,), device=logits.device)
    of_rows = torch.rand(rows, device=logits.device)

    def eager(z: Tensor) -> Tensor:
        similar = labels[:, None] == labels
        of_pairs = terms(divergences(z, z), similar) * (of_rows[:, None] * of_rows)
        alike = similar.sum() - rows
        return (
            torch.where(similar, of_pairs, 0).sum() / alike
            + torch.where(similar, 0, of_pairs).sum() / (~similar).sum()
        )

    def ours(z: Tensor) -> Tensor:
        return pairloss.pair_kl_hinge_loss(
            z, labels, margin=MARGIN, balance="pairs", sample_weights=of_rows
        )

    return {"pairloss": ours, "eager": eager}


def pair_list(logits: Tensor) -> Methods:
    """A hundred pairs a row."""
    rows = len(logits)
    pairs = torch.randint(0, rows, (100 * rows, 2), device=logits.device)
    pairs[:, 1] += (pairs[:, 0] == pairs[:, 1]).long()
    pairs %= rows
    similar = torch.rand(len(pairs), device=logits.device) < 0.3

    def eager(z: Tensor) -> Tensor:
        log_p = functional.log_softmax(z, 1)
        log_a, log_b = log_p[pairs[:, 0]], log_p[pairs[:, 1]]
        there = (log_a.exp() * (log_a - log_b)).sum(1)
        back = (log_b.exp() * (log_b - log_a)).sum(1)
        return (terms(there, similar) + terms(back, similar)).mean()

    def ours(z: Tensor) -> Tensor:
        loss = pairloss.pair_kl_hinge_loss_from_pairs(z, pairs, similar, margin=MARGIN)
        assert isinstance(loss, Tensor)
        return loss

    return {"pairloss": ours, "eager": eager}


FORMS: dict[str, Callable[[Tensor], Methods]] = {
    form.__name__.replace("_", " "): form
    for form in (levels, reference_set, similarity_matrix, weights, pair_list)
}


def make_steps(form: str, logits: Tensor) -> dict[str, Step]:
    """Forward and backward of every method, which must agree about the value."""
    methods = FORMS[form](logits)
    values = {name: float(method(logits.detach())) for name, method in methods.items()}
    for name, value in values.items():
        if abs(value - values["pairloss"]) > 1e-4 * abs(values["pairloss"]):
            raise RuntimeError(f"{form}: {name} gives {value}, pairloss {values['pairloss']}")

    def step(method: Callable[[Tensor], Tensor]) -> Step:
        return Step(lambda: torch.autograd.grad(method(logits), logits))

    return {name: step(method) for name, method in methods.items()}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", nargs="+", type=parse_size, default=SIZES, metavar="NxK")
    add("--forms", nargs="+", choices=FORMS, default=list(FORMS), metavar="NAME")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--seconds", type=float, default=6.0, help="of rounds for each form and size")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--markdown", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(arguments.threads)
    timer = Timer.for_device(torch.device(arguments.device))
    rows: list[tuple[str, ...]] = []
    for count, columns in arguments.sizes:
        for form in arguments.forms:
            torch.manual_seed(0)
            logits = torch.randn(count, columns, device=arguments.device) * 3
            steps = make_steps(form, logits.requires_grad_())
            paces = {name: timer.warm_up(step) for name, step in steps.items()}
            samples = interleave(timer, steps, paces, arguments.seconds)
            ours = statistics.median(samples["pairloss"])
            for name, of_method in samples.items():
                median = statistics.median(of_method)
                rows.append(
                    (
                        f"({count}, {columns}) {form}" if name == "pairloss" else "",
                        name,
                        table.duration(median),
                        f"{100 * spread(of_method):.0f}%",
                        f"{median / ours:.2f}x",
                    )
                )
    header = ("case", "method", "median", "spread", "time / pairloss")
    print(table.render(rows, header, arguments.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
