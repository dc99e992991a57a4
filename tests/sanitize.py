"""`make sanitize`: the C++ under AddressSanitizer and UBSan.

First the tests of the kernels' insides, which compile them for themselves, then those of the
operators, with a CPU library of their own in build/sanitized.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.native_build import ROOT, SANITIZERS

INSIDES = ["tests/whitebox", "tests/cuda_emulation"]
# Not what measures memory, of which the sanitizers take a lot, nor what nvcc compiles.
OPERATORS = [
    str(path.relative_to(ROOT))
    for path in sorted(ROOT.glob("tests/test_*.py"))
    if not path.stem.endswith(("_memory", "_compile", "_cuda"))
]
PACKAGE = "build/sanitized"


def run(command: list[str], **environment: str) -> None:
    finished = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, **environment}
    )
    if finished.returncode:
        sys.exit(finished.returncode)


def runtime(name: str) -> str:
    command = ["gcc", f"-print-file-name={name}"]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def test(arguments: list[str]) -> None:
    run(
        # Capturing file descriptors would swallow the sanitizers' reports.
        ["-m", "pytest", "--capture=sys", "-m", "not slow", *arguments, *sys.argv[1:]],
        PAIRLOSS_SANITIZE="1",
        CUDA_VISIBLE_DEVICES="",
        # libstdc++ too: libasan wraps its exceptions, and looks for them before any module comes.
        LD_PRELOAD=f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        ASAN_OPTIONS="detect_leaks=0",  # Python's own, at exit
        UBSAN_OPTIONS="print_stacktrace=1",
    )


def build_package() -> None:
    flags = " ".join(SANITIZERS)
    where = ["--build-lib", PACKAGE]
    run(
        ["setup.py", "build_py", *where, "build_ext", *where, "--build-temp", f"{PACKAGE}-objects"],
        CXXFLAGS=flags,
        LDFLAGS=flags,
        DEBUG="1",
        FORCE_CUDA="0",
    )


if __name__ == "__main__":
    test([folder for folder in INSIDES if (ROOT / folder).exists()])
    build_package()
    # The package built for this comes before the checkout's own.
    test(["--override-ini", f"pythonpath={PACKAGE} .", *OPERATORS])
