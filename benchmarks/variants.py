"""Libraries that lack one idea each of csrc/cpu/ideas.h, in build/ablation.

They are compiled with setup.py's own flags, and only where the switch makes a difference: the rest
is linked from the whole library's objects. ninja compiles only what has changed.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
setup: Any = importlib.import_module("setup")  # not typed throughout
FOLDER = ROOT / "build" / "ablation"
HEADER = ROOT / "csrc" / "cpu" / "ideas.h"
WHOLE = "nothing"  # is switched off


def read_ideas() -> tuple[str, ...]:
    """The names in the header, without :data:`WHOLE`."""
    body = re.search(r"enum class Idea \{(.*?)\};", HEADER.read_text(), re.DOTALL)
    if body is None:
        raise ValueError(f"{HEADER}: expected an enum class Idea")
    return tuple(name for name in re.findall(r"^  (\w+),", body[1], re.MULTILINE) if name != WHOLE)


def build(ideas: Mapping[str, Collection[str]]) -> dict[str, Path]:
    """Folders by idea, and of :data:`WHOLE`, in each of which there is a package ``pairloss``.

    ``ideas`` maps each to the capabilities in whose kernels it is switched off.
    """
    if unknown := set(ideas) - set(read_ideas()):
        raise ValueError(f"ideas: expected some of {', '.join(read_ideas())}, got {unknown}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "build.ninja").write_text(ninja_file(ideas))
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    ninja = shutil.which("ninja", path=beside)
    if ninja is None:
        raise RuntimeError("ninja, which compiles the variants, is missing: pip install ninja")
    print(f"Compiling what has changed in {FOLDER} ...", file=sys.stderr, flush=True)
    run = subprocess.run(
        [ninja, "-C", str(FOLDER), f"-j{setup.JOBS}", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(f"ninja failed in {FOLDER}:\n{run.stdout}")
    names = (WHOLE, *ideas)
    for name in names:
        _link_modules(FOLDER / name / "pairloss")
    return {name: FOLDER / name for name in names}


def ninja_file(ideas: Mapping[str, Collection[str]]) -> str:
    csrc = ROOT / "csrc"
    sources = [csrc / "schema.cpp", *sorted((csrc / "cpu").glob("*.cpp"))]
    extension = setup.library("_C", [])
    # Without what a variant leaves unused being warned of. The standard is the one that torch adds.
    flags = [flag for flag in extension.extra_compile_args["cxx"] if not flag.startswith("-W")]
    flags += ["-w", "-std=c++20", "-fPIC", *(f"-I{path}" for path in extension.include_dirs)]
    libraries = [f"-L{path}" for path in extension.library_dirs]
    libraries += [f"-l{name}" for name in extension.libraries]
    compiler = shlex.split(cpp_extension.get_cxx_compiler())
    compile_object = shlex.join([*compiler, *flags])
    link_library = shlex.join([*compiler, "-shared", "-Wl,--as-needed"])
    lines = [
        "rule compile",
        f"  command = {_escaped(compile_object)} $switch -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {_escaped(link_library)} $in -o $out "
        + _escaped(shlex.join([*extension.extra_link_args, *libraries])),
    ]
    for name in (WHOLE, *ideas):
        objects = []
        for source in sources:
            differs = name == WHOLE or _has_switches(source, ideas[name])
            target = f"{name if differs else WHOLE}/{source.stem}.o"
            objects.append(target)
            if differs:
                lines.append(f"build {target}: compile {_escaped_path(source)}")
                lines.append(f"  switch = -DPAIRLOSS_WITHOUT={name}")
        lines.append(f"build {name}/pairloss/_C.so: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _has_switches(source: Path, capabilities: Collection[str]) -> bool:
    isas = ["baseline" if name == "default" else name for name in capabilities]
    kernels = source.stem in [f"pair_kl_hinge_{isa}" for isa in isas]
    return kernels or f'"cpu/{HEADER.name}"' in source.read_text()


def _escaped(text: str) -> str:
    return text.replace("$", "$$")


def _escaped_path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _link_modules(package: Path) -> None:
    """The Python modules beside the library."""
    for path in (ROOT / "pairloss").iterdir():
        link = package / path.name
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not link.exists():
            link.symlink_to(path)
