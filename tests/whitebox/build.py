"""pairloss_whitebox: the insides of the CPU kernels, opened to pytest with pybind11; no torch."""

from __future__ import annotations

import os
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pybind11

from tests.native_build import OPTIMISE, ROOT, compile_once, headers

NAME = "pairloss_whitebox"
HERE = Path(__file__).resolve().parent


def kernels() -> list[Path]:
    """All that csrc/cpu has but for what talks to torch."""
    found = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    return [path for path in found if "#include <torch/" not in path.read_text()]


def sources() -> list[Path]:
    """The bindings and the kernels."""
    return [*sorted(HERE.glob("*.cpp")), *kernels()]


def build() -> Path:
    """The module's path. An edited source recompiles alone, an edited header recompiles all."""
    flags = [
        "-std=c++17",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-pthread",
        *OPTIMISE,
    ]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
    includes += [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    read = [*headers("*.h", "cpu/*.h"), *sorted(HERE.glob("*.h"))]

    def compile_one(source: Path) -> Path:
        arguments = [*flags, *includes, "-c", str(source)]
        return compile_once(f"{source.stem}.o", arguments, [*read, source])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources()))
    return compile_once(f"{NAME}.so", ["-shared", *flags, *map(str, objects)], objects)


def load() -> ModuleType:
    loader = ExtensionFileLoader(NAME, str(build()))
    spec = spec_from_loader(NAME, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
