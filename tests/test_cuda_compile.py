"""The CUDA sources compile for A100, H100 and RTX 50 without spills, and as many blocks as planned
fit on a multiprocessor.

pytest tests/test_cuda_compile.py -s        prints registers and shared memory per kernel
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90", "120")
STATIC_SHARED_LIMIT = 48 * 1024
# Of a multiprocessor, the smallest of these architectures'; a block takes 1 KB of its own.
REGISTERS, SHARED_BYTES = 64 * 1024, 100 * 1024

# Dynamic, so ptxas does not know of it: kTensorSharedBytes of one plane and step, and
# kProductSharedBytes of one plane.
TENSOR_STAGES = 16 * 1024
PRODUCT_STAGES = {"true": 16 * 1024, "false": 8 * 1024}

# Threads of a block, and how many blocks shall fit on a multiprocessor.
PLANNED = {
    r"losses_kernel<float>": (256, 2),
    r"tensor_losses_kernel<Planes<.*>, float>": (128, 2),
    r"tensor_partial_kernel<Planes<.*>, float>": (128, 2),
    r"partial_divergences_kernel<float>": (256, 2),
    r"products_kernel<16, .*, float>": (64, 4),
    r"products_kernel<64, .*, float>": (256, 2),
    r"tensor_products_kernel<true, .*>": (512, 1),
    r"tensor_products_kernel<false, .*>": (256, 2),
    r"small_batch_kernel<.*, float, .*>": (256, 1),
    r"finish_kernel<.*, float, .*>": (256, 4),
    r"prepare_kernel<.*, float>": (256, 3),
}


class Kernel(NamedTuple):
    name: str
    registers: int
    shared: int
    spills: str  # "" without

    def blocks(self, threads: int) -> int:
        """That fit on a multiprocessor. Registers come in eights per thread."""
        by_registers = REGISTERS // (threads * (-(-self.registers // 8) * 8))
        shared = self.shared
        planes = re.search(r"Planes<\w+, (\d), (\d)>", self.name)
        if planes and self.name.startswith(("tensor_losses", "tensor_partial")):
            shared += TENSOR_STAGES * int(planes[1]) * int(planes[2])
        elif planes and (both := re.match(r"tensor_products_kernel<(\w+)", self.name)):
            shared += PRODUCT_STAGES[both[1]] * int(planes[1])
        return min(by_registers, SHARED_BYTES // (shared + 1024))


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [f"{home}/bin" for home in homes if home]
    places += os.environ.get("PATH", "").split(os.pathsep)
    places += map(str, sorted(Path("/usr/local").glob("cuda*/bin")))
    return shutil.which("nvcc", path=os.pathsep.join(places))


NVCC = find_nvcc()


def compile_verbosely(source: Path, architecture: str) -> str:
    """What ptxas reports."""
    include = Path(torch.__file__).parent / "include"
    command = [NVCC, "-std=c++17", "-O3", "-DNDEBUG", "-DUSE_CUDA", "-c", str(source)]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += [f"-I{ROOT / 'csrc'}", "-isystem", str(include)]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    command += ["-Xptxas=-v", "-Xcompiler=-fPIC", "-o", os.devnull]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    demangle = shutil.which("c++filt")
    if demangle is None:
        return run.stderr
    return subprocess.run([demangle], input=run.stderr, capture_output=True, text=True).stdout


def parse(report: str) -> list[Kernel]:
    kernels = []
    for part in report.split("Compiling entry function ")[1:]:
        name = re.sub(r"\(anonymous namespace\)::|^void |pairloss::cuda::", "", part.split("'")[1])

        def number(pattern: str, part: str = part) -> int:
            found = re.search(pattern, part)
            return int(found[1]) if found else 0

        spills = [
            f"{count} bytes {what}"
            for what in ("stack frame", "spill stores", "spill loads")
            if (count := number(rf"(\d+) bytes {what}"))
        ]
        registers, shared = number(r"Used (\d+) registers"), number(r"(\d+) bytes smem")
        kernels.append(Kernel(name.partition("(")[0], registers, shared, ", ".join(spills)))
    return kernels


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", sorted(ROOT.glob("csrc/cuda/*.cu")), ids=lambda path: path.stem)
def test_compiles_without_spills(source: Path, architecture: str) -> None:
    report = compile_verbosely(source, architecture)
    kernels = parse(report)
    assert kernels, report
    for name, registers, shared, _ in sorted(kernels):
        print(f"sm_{architecture} {name:50} {registers:4} registers {shared:6} bytes shared")
        assert 0 < registers <= 255
        assert shared <= STATIC_SHARED_LIMIT
    assert not [kernel for kernel in kernels if kernel.spills]
    if source.stem != "pair_kl_hinge":
        return
    for pattern, (threads, blocks) in PLANNED.items():
        planned = [kernel for kernel in kernels if re.fullmatch(pattern, kernel.name)]
        assert planned, f"no kernel {pattern}"
        assert not [kernel for kernel in planned if kernel.blocks(threads) < blocks]
