"""Every CUDA kernel at small, odd sizes, results checked: for compute-sanitizer (gpu_check.sh)."""

from __future__ import annotations

import sys

import torch

from pairloss import pair_kl_hinge_loss

# One row; less than a tile; more than one; the wide panel; and a chunk of 64 rows, then one of 6.
SHAPES = [(1, 1), (3, 2), (17, 10), (130, 34), (70, 127), (70, 40_000)]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def evaluate(
    logits: torch.Tensor, labels: torch.Tensor, gradient: str, reduction: str, impl: str
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.detach().requires_grad_()
    loss = pair_kl_hinge_loss(
        logits, labels, gradient=gradient, reduction=reduction, ignore_index=0, impl=impl
    )
    loss.backward(torch.linspace(0.5, 1.5, loss.numel(), device=loss.device).view_as(loss).to(loss))
    assert logits.grad is not None
    return loss.detach(), logits.grad


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, classes in SHAPES:
        for dtype in TOLERANCE:
            if classes > 1000 and dtype != torch.float32:
                continue  # sanitizers are slow
            logits = (1.4 * torch.randn(rows, classes, generator=generator)).to("cuda", dtype)
            labels = torch.randint(0, 4, (rows,), generator=generator).cuda()
            for masked in (False, True):
                if masked:
                    logits[:, 0] = 0.0 if classes == 1 else -torch.inf
                for gradient in ("both", "second"):
                    for reduction in ("mean", "none"):
                        case = (logits, labels, gradient, reduction)
                        # The reference on the CPU: its kernels are not what is to be checked.
                        exact = evaluate(
                            logits.double().cpu(), labels.cpu(), *case[2:], "reference"
                        )
                        for ours, expected in zip(evaluate(*case, "fused"), exact, strict=True):
                            scale = max(float(expected.abs().max()), 1e-6)
                            error = float((ours.double().cpu() - expected).abs().max()) / scale
                            if not error <= TOLERANCE[dtype]:
                                sys.exit(f"{rows, classes} {dtype} {gradient} {reduction}: {error}")
    print("every result is right")


if __name__ == "__main__":
    main()
