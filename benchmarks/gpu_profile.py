"""Time per kernel of one evaluation with its gradient, from torch's profiler (see gpu_check.sh)."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from pairloss import pair_kl_hinge_loss

# Rows, classes, and what a row's logit is greater by at its label: as in a trained network, where
# most tiles of pairs are certain.
CASES = [
    (16, 10, 0.0),
    (128, 34, 0.0),
    (1024, 34, 0.0),
    (128, 4096, 0.0),
    (1024, 4096, 0.0),
    (4096, 10, 0.0),
    (4096, 34, 0.0),
    (4096, 34, 8.0),
    (16384, 128, 0.0),
    (16384, 128, 8.0),
]
REPEATS = 10


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, classes, height in CASES:
        random = 1.4 * torch.randn(rows, classes, generator=generator)
        of_row = torch.randint(0, 34, (rows,), generator=generator)
        random[torch.arange(rows), of_row % classes] += height
        logits, labels = random.cuda().requires_grad_(), of_row.cuda()

        def step(logits: torch.Tensor = logits, labels: torch.Tensor = labels) -> None:
            pair_kl_hinge_loss(logits, labels).backward()
            logits.grad = None

        step()  # the first loads modules and grows the allocator's cache
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(REPEATS):
                step()
            torch.cuda.synchronize()
        print(f"({rows}, {classes}), {height:g} at the label, {REPEATS} evaluations")
        # Kernels' names begin alike, and a large batch has twenty.
        table = profiler.key_averages().table(
            sort_by="cuda_time_total", row_limit=-1, max_name_column_width=200
        )
        print(table, flush=True)


if __name__ == "__main__":
    main()
