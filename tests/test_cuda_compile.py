"""The CUDA sources compile for A100 and H100 without spills.

pytest tests/test_cuda_compile.py -s        prints registers and shared memory per kernel
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90")
STATIC_SHARED_LIMIT = 48 * 1024


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


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", sorted(ROOT.glob("csrc/cuda/*.cu")), ids=lambda path: path.stem)
def test_compiles_without_spills(source: Path, architecture: str) -> None:
    report = compile_verbosely(source, architecture)
    kernels = re.findall(
        r"Compiling entry function '(.+?)' for .*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers(?:.*?(\d+) bytes smem)?",
        report.replace("\n", " "),
    )
    assert kernels, report
    spilling = []
    for signature, *numbers in kernels:
        name = re.sub(r"\(anonymous namespace\)::|^void |pairloss::cuda::", "", signature)
        name = name.partition("(")[0]
        stack, stores, loads, registers, shared = (int(number or 0) for number in numbers)
        print(f"sm_{architecture} {name:50} {registers:4} registers {shared:6} bytes shared")
        assert shared <= STATIC_SHARED_LIMIT
        if stack or stores or loads:
            spilling.append(f"{name}: {stack} bytes of stack, {stores} stored, {loads} loaded")
    assert not spilling
