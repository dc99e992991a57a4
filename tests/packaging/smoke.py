"""Run by test_two_torch.py under one torch after the other: is the installed library whole?

Prints the results' bits, which are the same under every torch.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

import pairloss
from pairloss import _library


def main() -> None:
    assert Path(pairloss.__file__).parents[1] == Path(os.environ["PYTHONPATH"])
    status = _library.status()
    assert status.cpu_loaded, status.cpu_problem
    assert status.cuda_loaded == (torch.version.cuda is not None and bool(status.build["cuda"])), (
        status.cuda_problem
    )
    assert status.autograd_loaded == (torch.__version__ == status.build["torch"]), (
        status.autograd_problem
    )

    generator = torch.Generator().manual_seed(0)
    for rows, classes in ((3, 2), (64, 10), (257, 34)):
        logits = 3 * torch.randn(rows, classes, generator=generator)
        labels = torch.randint(classes, (rows,), generator=generator)
        results = {}
        for impl in ("reference", "fused"):
            leaf = logits.clone().requires_grad_()
            loss, stats = pairloss.pair_kl_hinge_loss(leaf, labels, return_stats=True, impl=impl)
            (gradient,) = torch.autograd.grad(1.7 * loss, leaf)
            results[impl] = loss, gradient, *stats
        for fused, reference in zip(results["fused"], results["reference"], strict=True):
            torch.testing.assert_close(fused, reference, rtol=1e-4, atol=1e-5, check_dtype=False)
        loss, gradient = results["fused"][:2]
        plain = pairloss.pair_kl_hinge_loss(leaf, labels)  # where autograd may be in C++
        assert torch.equal(plain, loss)
        assert torch.equal(torch.autograd.grad(1.7 * plain, leaf)[0], gradient)
        print(rows, classes, loss.item().hex(), *(x.hex() for x in gradient.flatten().tolist()))

    double = logits[:20].double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: pairloss.pair_kl_hinge_loss(x, labels[:20], impl="fused"), double
    )
    compiled = torch.compile(
        lambda x: pairloss.pair_kl_hinge_loss(x, labels[:20]), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(double), pairloss.pair_kl_hinge_loss(double, labels[:20]))


if __name__ == "__main__":
    main()
