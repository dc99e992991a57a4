"""What the machine's matrix multiply reaches on large square matrices, in the run itself."""

from __future__ import annotations

import statistics

import torch

from benchmarks.timing import Step, Timer

SIZES = {"cpu": 2048, "cuda": 8192}
SAMPLES = 5


def measure(device: str) -> dict[str, float]:
    """GF/s by precision: float32, and on a GPU those of its tensor cores, tf32 and bfloat16."""
    size = SIZES[device]
    matrix = torch.randn(size, size, device=device)
    found = {"float32": _gflops(matrix)}
    if device == "cuda":
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        found["tf32"] = _gflops(matrix)
        torch.backends.cuda.matmul.allow_tf32 = allowed
        found["bfloat16"] = _gflops(matrix.bfloat16())
    return found


def _gflops(matrix: torch.Tensor) -> float:
    out = torch.empty_like(matrix)
    step = Step(lambda: torch.mm(matrix, matrix, out=out))
    timer = Timer.for_device(matrix.device)
    timer.warm_up(step)
    seconds = statistics.median(timer.sample(step) for _ in range(SAMPLES))
    return 2.0 * len(matrix) ** 3 / seconds / 1e9
