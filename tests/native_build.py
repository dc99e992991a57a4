"""Compiles the C++ that tests look into, once per content; under sanitizers in `make sanitize`."""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "tests"
SANITIZE = os.environ.get("PAIRLOSS_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SANITIZERS += ["-fno-omit-frame-pointer"]
OPTIMISE = ["-O1", "-g", *SANITIZERS] if SANITIZE else ["-O3", "-DNDEBUG"]


def compile_once(name: str, arguments: list[str], files: Iterable[Path]) -> Path:
    """The output of the compiler with these arguments, from these files.

    It is kept under a hash of all that goes into it, `files` being what the compiler will read.
    """
    digest = hashlib.sha256(repr([_compiler_version(), arguments]).encode())
    for file in files:
        digest.update(file.read_bytes())
    target = FOLDER / f"{digest.hexdigest()[:16]}-{name}"
    if not target.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        # Named when complete: another process or thread may be building the same.
        unfinished = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        _compile([*arguments, "-o", str(unfinished)])
        unfinished.replace(target)
    return target


def headers(*patterns: str) -> list[Path]:
    """Files of csrc by pattern, in a fixed order."""
    return sorted(file for pattern in patterns for file in (ROOT / "csrc").glob(pattern))


@functools.cache
def _compiler_version() -> str:
    return _compile(["--version"])


def _compile(arguments: list[str]) -> str:
    command = [*shlex.split(os.environ.get("CXX", "c++")), *arguments]
    # libasan, preloaded into this process, is not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(
        command, env=environment, check=True, text=True, stdout=subprocess.PIPE
    ).stdout
