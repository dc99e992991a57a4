"""Every CUDA kernel at small, odd sizes, results checked: for compute-sanitizer (gpu_check.sh)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pairloss import pair_kl_hinge_loss, pair_kl_hinge_loss_from_similarity

# Two launches: one row; less than a tile; more than one. Tiled: more than one tile; classes in
# parts.
SHAPES = [(1, 1), (3, 2), (17, 10), (130, 34), (70, 127), (66, 600)]
LESS_PRECISE = SHAPES[-2:]
MANY_CLASSES = (65, 33_000)
# The smallest batch that is put in order first, and of whose tiles some are certain.
CERTIFIED = (4096, 32)
# (N, K, G, dtype): the marks of so many label levels do not fit into one chunk of rows, but into
# two. On tensor cores, in FMA, and with certificates.
TWO_CHUNKS = [
    (1100, 34, 256, torch.float32),
    (1100, 10, 256, torch.float64),
    (4096, 32, 17, torch.float32),
]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}

Arguments = dict[str, Any]


def make_forms(rows: int, classes: int, generator: torch.Generator) -> Iterator[Arguments]:
    """Label levels, a reference set, a similarity matrix, weights."""

    def labels(*shape: int) -> Tensor:
        return torch.randint(0, 4, shape, generator=generator)

    weights = torch.rand(rows, generator=generator)
    similarity = torch.randint(-1, 2, (rows, rows), generator=generator).to(torch.int8)
    ref_logits = 1.4 * torch.randn(rows // 2 + 1, classes, generator=generator)
    yield {"labels": labels(rows, 3), "level_weights": (0.3, 1.0, 2.0), "ignore_index": 0}
    yield {
        "labels": labels(rows, 2),
        "ref_logits": ref_logits.requires_grad_(),
        "ref_labels": labels(len(ref_logits), 2),
        "ignore_index": 0,
        "balance": "pairs",
        "sample_weights": weights,
    }
    yield {"similarity": similarity, "balance": "pairs", "sample_weights": weights}


def evaluate(arguments: Arguments, impl: str, device: str) -> list[Tensor]:
    """The loss and the gradients for an upstream gradient that is not 1."""
    dtype = torch.float64 if impl == "reference" else arguments["logits"].dtype
    moved: Arguments = {}
    for name, value in arguments.items():
        moved[name] = value
        if isinstance(value, Tensor):
            moved[name] = value.detach().to(device, dtype if name.endswith("logits") else None)
    leaves = [moved[name].requires_grad_() for name in ("logits", "ref_logits") if name in moved]
    by_labels = "labels" in moved
    loss_of: Any = pair_kl_hinge_loss if by_labels else pair_kl_hinge_loss_from_similarity
    loss: Tensor = loss_of(**moved, impl=impl)
    # Converted on the CPU, and so are the results: what torch's kernels write, tools that look at
    # ours alone take for uninitialised.
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape).to(device)
    grads = torch.autograd.grad(loss, leaves, upstream)
    return [result.detach().cpu().double() for result in (loss, *grads)]


def check(
    arguments: Arguments, reference: str = "reference", tolerance: float | None = None
) -> None:
    tolerance = TOLERANCE[arguments["logits"].dtype] if tolerance is None else tolerance
    # On the CPU: the reference's kernels are not what is to be checked.
    double = {**arguments, "logits": arguments["logits"].double()}
    expected = evaluate(double, reference, "cpu")
    for ours, exact in zip(evaluate(arguments, "fused", "cuda"), expected, strict=True):
        scale = max(float(exact.abs().max()), 1e-6)
        error = float((ours - exact).abs().max()) / scale
        if not error <= tolerance:
            sys.exit(f"{arguments}: {error}")


def make_logits(rows: int, classes: int, generator: torch.Generator) -> Tensor:
    return 1.4 * torch.randn(rows, classes, generator=generator)


def check_small(generator: torch.Generator) -> None:
    """Small batches, and a few tiles."""
    for rows, classes in SHAPES:
        labels = torch.randint(0, 4, (rows,), generator=generator)
        for dtype in TOLERANCE:
            logits = make_logits(rows, classes, generator).to(dtype)
            plain: Arguments = {"logits": logits, "labels": labels, "ignore_index": 0}
            for reduction in ("mean", "none"):
                check({**plain, "reduction": reduction})
            check({**plain, "gradient": "second"})
            if dtype == torch.float32:
                plain["logits"][:, 0] = 0.0 if classes == 1 else -torch.inf
                check(plain)
        for form in make_forms(rows, classes, generator):
            for reduction in ("mean", "none"):
                logits = make_logits(rows, classes, generator)
                check({"logits": logits, **form, "reduction": reduction})
        print(f"({rows}, {classes}) is right", flush=True)
    for precision in ("tf32x3", "bf16x3", "tf32"):
        for rows, classes in LESS_PRECISE:  # similar pairs alone: near the margin, pairs may flip
            logits = make_logits(rows, classes, generator)
            similar = torch.zeros(rows, dtype=torch.int64)
            check({"logits": logits, "labels": similar, "precision": precision}, tolerance=1e-3)
    labels = torch.arange(MANY_CLASSES[0]) % 4
    logits = make_logits(*MANY_CLASSES, generator)
    check({"logits": logits, "labels": labels}, reference="fused")  # the other takes seconds


def check_large(generator: torch.Generator) -> None:
    """Certificates, and several chunks."""
    rows, classes = CERTIFIED
    labels = torch.arange(rows) % 8
    # Far apart, and near a margin that no pair is close to.
    for height, margin in ((12.0, 2.0), (0.1, 100.0)):
        clustered = 0.3 * make_logits(rows, classes, generator)
        clustered[range(rows), labels] += height
        # The reference takes N^2 K memory.
        check({"logits": clustered, "labels": labels, "margin": margin}, reference="fused")
    for rows, classes, levels, dtype in TWO_CHUNKS:
        logits = make_logits(rows, classes, generator).to(dtype)
        labels = torch.randint(0, 4, (rows, levels), generator=generator)
        # Far from the margin, all dissimilar pairs are active: else some may flip.
        given: Arguments = {"logits": logits, "labels": labels, "margin": 100.0}
        for gradient in ("both", "second"):
            check({**given, "gradient": gradient}, reference="fused")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="no large batches")
    arguments = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(0)
    check_small(generator)
    if not arguments.small:
        check_large(generator)
    print("every result is right")


if __name__ == "__main__":
    main()
