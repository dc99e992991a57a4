"""Time per kernel of one evaluation with its gradient, from torch's profiler (see gpu_check.sh)."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from pairloss import pair_kl_hinge_loss

SHAPES = [(16, 10), (128, 34), (1024, 34), (128, 4096), (1024, 4096), (4096, 10), (16384, 128)]
REPEATS = 10


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, classes in SHAPES:
        logits = (1.4 * torch.randn(rows, classes, generator=generator)).cuda().requires_grad_()
        labels = torch.randint(0, 34, (rows,), generator=generator).cuda()

        def step(logits: torch.Tensor = logits, labels: torch.Tensor = labels) -> None:
            pair_kl_hinge_loss(logits, labels).backward()
            logits.grad = None

        step()  # the first loads modules and grows the allocator's cache
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(REPEATS):
                step()
            torch.cuda.synchronize()
        print(f"({rows}, {classes}), {REPEATS} evaluations")
        print(profiler.key_averages().table(sort_by="cuda_time_total", row_limit=10))


if __name__ == "__main__":
    main()
