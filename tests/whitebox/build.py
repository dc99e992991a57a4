"""Compiles pairloss_whitebox: the insides of the CPU kernels, opened to pytest, without torch.

    python tests/whitebox/build.py --sanitize [pytest arguments]

runs this folder's tests with the module, and Python around it, under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]
NAME = "pairloss_whitebox"
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"]
OPTIMISED = ["-O3", "-DNDEBUG"]
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SANITIZED += ["-fno-omit-frame-pointer"]


def sources() -> list[Path]:
    """The bindings, and the kernels: all that csrc/cpu has but for what talks to torch."""
    bindings = (ROOT / "tests" / "whitebox").glob("*.cpp")
    kernels = (ROOT / "csrc" / "cpu").glob("*.cpp")
    return sorted([*bindings, *(path for path in kernels if "<torch/" not in path.read_text())])


def build(sanitize: bool = False) -> Path:
    """The module's path, compiled if need be.

    Everything is kept in build/whitebox under a hash of what goes into it, so an edited source
    recompiles alone, and an edited header recompiles all.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    # libasan, preloaded into this process, is not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}

    def run(command: list[str]) -> str:
        return subprocess.run(
            command, env=environment, check=True, text=True, stdout=subprocess.PIPE
        ).stdout

    flags = FLAGS + (SANITIZED if sanitize else OPTIMISED)
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'whitebox'}"]
    includes += [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    headers = [path for path in sorted(ROOT.glob("csrc/**/*")) if path.suffix in (".h", ".inc")]
    headers += sorted(ROOT.glob("tests/whitebox/*.h"))
    common = hashlib.sha256(
        repr([run([*compiler, "--version"]), flags, includes, pybind11.__version__]).encode()
    )
    for header in headers:
        common.update(header.read_bytes())

    folder = ROOT / "build" / "whitebox"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path, command: list[str]) -> Path:
        # Under its own name only when complete: two processes may build at the same time.
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}")
            run([*compiler, *flags, *command, "-o", str(unfinished)])
            unfinished.replace(target)
        return target

    def compile_one(source: Path) -> Path:
        key = common.copy()
        key.update(source.read_bytes())
        target = folder / f"{source.stem}-{key.hexdigest()[:16]}.o"
        return make(target, [*includes, "-c", str(source)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(path) for path in pool.map(compile_one, sources())]
    key = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    return make(folder / f"{NAME}-{key}.so", ["-shared", *objects])


def load() -> ModuleType:
    path = build(sanitize=os.environ.get("PAIRLOSS_SANITIZE") == "1")
    loader = ExtensionFileLoader(NAME, str(path))
    spec = spec_from_loader(NAME, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def run_sanitized(pytest_arguments: list[str]) -> None:
    def library(name: str) -> str:
        command = ["gcc", f"-print-file-name={name}"]
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()

    build(sanitize=True)
    environment = {
        **os.environ,
        "PAIRLOSS_SANITIZE": "1",
        # libstdc++ too: libasan wraps its exceptions, and looks for them before the module comes.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), *pytest_arguments]
    os.chdir(ROOT)
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sanitize"]:
        run_sanitized(sys.argv[2:])
    print(build())
