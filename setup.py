"""Builds pairloss's libraries of operators; everything else is in pyproject.toml.

    pairloss/_C.so       csrc/schema.cpp, csrc/cpu/*.cpp     always
    pairloss/_C_cuda.so  csrc/cuda/*.cu, csrc/cuda/*.cpp     with a CUDA toolkit and torch with CUDA
    pairloss/_C_autograd_VERSION.so  csrc/autograd/*.cpp     always; for this version of torch

The first two use the LibTorch stable ABI, and none the Python C API, so that one wheel serves every
torch from 2.10 on and every Python 3. The third makes small batches faster under the torch that it
was built with; others do without it. Switches, all environment variables:

    FORCE_CUDA=1          fail where the CUDA library cannot be built (0: never build it)
    TORCH_CUDA_ARCH_LIST  compute capabilities, "8.0;9.0+PTX", or "native": of this machine's GPUs
    MAX_JOBS              how many compilers may run at once
    DEBUG=1               for a debugger: little optimised, with debug information and assertions
    ONLY_AUTOGRAD=1       the third library alone, beside what is there
"""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "pairloss is compiled against torch, and this Python has none. Either let pip fetch one "
        "for the build (`pip install .`, with build isolation), or install torch>=2.10 first."
    )

if torch.torch_version.TorchVersion(torch.__version__) < "2.10":
    sys.exit(
        f"pairloss needs torch>=2.10 to compile against, and this is torch {torch.__version__}."
    )

ROOT = Path(__file__).resolve().parent
# The oldest torch that the binaries run with: 2.10.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# A100, RTX 30, RTX 40, H100, B200, RTX 50. The newest also goes in as PTX, for what comes after it,
# and that of B200 for what lies between.
DEFAULT_ARCHS = ("8.0", "8.6", "8.9", "9.0", "10.0+PTX", "12.0+PTX")
DEBUG = os.environ.get("DEBUG", "0") not in ("", "0")
ONLY_AUTOGRAD = os.environ.get("ONLY_AUTOGRAD", "0") not in ("", "0")
# As pairloss/_library.py has it.
AUTOGRAD = "_C_autograd_" + re.sub(r"\W", "_", torch.__version__)
JOBS = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


class Toolkit(NamedTuple):
    home: Path
    include: Path
    version: tuple[int, int]

    @property
    def name(self) -> str:
        return f"CUDA {self.version[0]}.{self.version[1]} in {self.home}"


def toolkit_at(home: Path) -> Toolkit | None:
    """The CUDA toolkit in this folder, or None where it is not a whole one."""
    if (home / "bin" / "nvcc").is_file():
        # The second is conda's layout.
        for include in (home / "include", *sorted(home.glob("targets/*/include"))):
            header = include / "cuda_runtime_api.h"
            text = header.read_text(errors="replace") if header.is_file() else ""
            if found := re.search(r"#define\s+CUDART_VERSION\s+(\d+)", text):
                version = int(found[1])
                return Toolkit(home, include, (version // 1000, version % 1000 // 10))
    return None


def find_toolkit(torch_cuda: str) -> Toolkit | None:
    """CUDA_HOME if it is set, else the first of the usual places, those of torch's CUDA first.

    torch's own guess is the parent of nvcc's folder, which is wrong where nvcc on the PATH is a
    link or a wrapper: it is one candidate among others here.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named and (toolkit := toolkit_at(Path(named))):
        return toolkit
    places = [cpp_extension.CUDA_HOME, *sorted(glob.glob("/usr/local/cuda*"))]
    if nvcc := shutil.which("nvcc"):
        places.insert(1, str(Path(nvcc).resolve().parents[1]))
    found = [toolkit for place in places if place and (toolkit := toolkit_at(Path(place)))]
    found.sort(key=lambda toolkit: toolkit.version[0] != int(torch_cuda.split(".")[0]))
    return found[0] if found else None


def cuda_toolkit(sources: list[str]) -> tuple[Toolkit | None, str]:
    """The toolkit to build the CUDA library with; where there is none, None and why."""
    force = os.environ.get("FORCE_CUDA", "")
    if force == "0":
        return None, "FORCE_CUDA=0"
    toolkit = None
    if torch.version.cuda is None:
        problem = f"torch {torch.__version__} is a build without CUDA"
    elif not (toolkit := find_toolkit(torch.version.cuda)):
        problem = (
            "no CUDA toolkit (bin/nvcc and include/cuda_runtime_api.h) in CUDA_HOME, on the PATH "
            "or in /usr/local/cuda*"
        )
    elif toolkit.version[0] != int(torch.version.cuda.split(".")[0]):
        problem = f"torch was built for CUDA {torch.version.cuda}, the toolkit is {toolkit.name}"
    elif not sources:
        problem = "csrc/cuda holds no kernels"
    else:
        return toolkit, ""
    if force == "1":
        sys.exit(f"pairloss: FORCE_CUDA=1, but the CUDA library cannot be built: {problem}")
    return None, problem


def cuda_archs(known: set[str]) -> list[str]:
    """The compute capabilities to compile for, of those that nvcc knows: {"80", "90", "90a"}."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(",", ";").replace(" ", ";")
    if wanted == "native":
        gpus = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        natives = [f"{major}.{minor}" for major, minor in sorted(gpus)]
        # Nothing to be native to, or newer than the compiler: the least that still runs everywhere.
        is_known = bool(natives) and all(arch.replace(".", "") in known for arch in natives)
        return natives if is_known else ["8.0+PTX"]
    if not wanted:
        archs = [a for a in DEFAULT_ARCHS if a.removesuffix("+PTX").replace(".", "") in known]
        return [*archs[:-1], archs[-1].removesuffix("+PTX") + "+PTX"]
    archs = [arch for arch in wanted.split(";") if arch]
    for arch in archs:
        form = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)
        if not form or form[1] + form[2] not in known:
            sys.exit(
                f"pairloss: TORCH_CUDA_ARCH_LIST has {arch!r}; expected compute capabilities such "
                f"as 8.0 or 9.0+PTX, or native; this nvcc knows {' '.join(sorted(known))}"
            )
    return archs


def gencode(archs: Sequence[str]) -> list[str]:
    # Not left to torch: it adds none as soon as any flag contains "arch", and a path may.
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def library(
    name: str,
    sources: list[str],
    toolkit: Toolkit | None = None,
    archs: Sequence[str] = (),
    stable: bool = True,
) -> Extension:
    torch_folder = Path(torch.__file__).parent
    # No -std: torch adds the one that its headers need. The sources themselves are C++17.
    both = [*([STABLE_ABI] if stable else []), "-isystem", str(torch_folder / "include")]
    both += ["-Og", "-g"] if DEBUG else ["-O3", "-DNDEBUG"]
    strip = [] if DEBUG else ["-Wl,--strip-all"]
    # Error messages name csrc/..., wherever that was.
    host = [f"-ffile-prefix-map={ROOT}/=", f"-ffile-prefix-map={torch_folder}/include/="]
    # GCC tells how vectors are passed between functions; all of ours that have any are inlined.
    host += ["-Wall", "-Wextra", "-Wno-psabi", "-fvisibility=hidden"]
    cxx, nvcc = [*both, *host], []
    libraries, library_dirs = ["torch_cpu", "c10"], [str(torch_folder / "lib")]
    if toolkit:
        include = str(toolkit.include)
        # /usr/include is searched anyway, and naming it would hide the C++ library's own headers.
        cxx += ["-DUSE_CUDA", *(["-isystem", include] if include != "/usr/include" else [])]
        cu_files = sum(source.endswith(".cu") for source in sources)
        nvcc = [*both, "-DUSE_CUDA", *(f"-Xcompiler={flag}" for flag in host), *gencode(archs)]
        nvcc += [f"--threads={max(1, min(len(archs), JOBS // cu_files))}"]
        # The static runtime, with its symbols hidden: no version of libcudart to agree with.
        libraries += ["torch_cuda", "cudart_static", "dl", "pthread", "rt"]
        homes = (toolkit.home, toolkit.include.parent)
        library_dirs += [str(home / lib) for home in homes for lib in ("lib64", "lib")]
    return Extension(
        f"pairloss.{name}",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        library_dirs=library_dirs,
        libraries=libraries,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        # Missing symbols are found here and not by the user.
        extra_link_args=["-Wl,--no-undefined", "-Wl,--exclude-libs,ALL", *strip],
        depends=[str(path) for path in Path("csrc").rglob("*") if path.suffix in (".h", ".cuh")],
        language="c++",
    )


def first_line(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]


def main() -> None:
    os.chdir(ROOT)
    # pip puts ninja beside this Python, which need not be on the PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cuda_sources = sorted(glob.glob("csrc/cuda/*.cu"))
    toolkit, no_cuda = cuda_toolkit(cuda_sources)
    archs: list[str] = []
    cpu_sources = ["csrc/schema.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))]
    autograd = library(AUTOGRAD, sorted(glob.glob("csrc/autograd/*.cpp")), stable=False)
    libraries = [autograd] if ONLY_AUTOGRAD else [library("_C", cpu_sources), autograd]
    if toolkit and not ONLY_AUTOGRAD:
        cpp_extension.CUDA_HOME = str(toolkit.home)
        nvcc = str(toolkit.home / "bin" / "nvcc")
        codes = subprocess.run(
            [nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True
        )
        archs = cuda_archs({code.removeprefix("sm_") for code in codes.stdout.split()})
        cuda_sources += sorted(glob.glob("csrc/cuda/*.cpp"))
        libraries.append(library("_C_cuda", cuda_sources, toolkit, archs))

    compiler = shlex.split(cpp_extension.get_cxx_compiler())
    build_info = {
        "torch": torch.__version__,
        "compiler": first_line([*compiler, "--version"]),
        "debug": DEBUG,
        "cuda": f"{toolkit.version[0]}.{toolkit.version[1]}" if toolkit else None,
        "cuda_archs": archs,
        "no_cuda": no_cuda,
    }

    class BuildLibraries(cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)):
        def finalize_options(self) -> None:
            # One folder for every kind of build (pip gives editable ones a temporary one), so that
            # each compiles only what has changed.
            self.build_temp = self.build_temp or f"build/objects-torch{torch.__version__}"
            super().finalize_options()

        def run(self) -> None:
            print(f"pairloss: torch {torch.__version__}, {build_info['compiler']}", flush=True)
            print(f"pairloss: {AUTOGRAD}", flush=True)
            if ONLY_AUTOGRAD:
                super().run()
            else:
                self.run_all()

        def run_all(self) -> None:
            print(f"pairloss: _C from {len(cpu_sources)} files", flush=True)
            why = f"{toolkit.name}, for {';'.join(archs)}" if toolkit else f"not built: {no_cuda}"
            print(f"pairloss: _C_cuda {why}", flush=True)
            super().run()
            folder = Path(self.get_ext_fullpath("pairloss._C")).parent
            if not toolkit:
                (folder / "_C_cuda.so").unlink(missing_ok=True)  # an earlier build's
            (folder / "_build_info.json").write_text(json.dumps(build_info, indent=2) + "\n")

        def build_extensions(self) -> None:
            # Not the flags that this Python was compiled with (-march, rpaths, ...): nothing here
            # belongs to Python, and the result shall not depend on which one built it.
            def flags(name: str) -> list[str]:
                return shlex.split(os.environ.get(name, ""))

            compile_object = [*compiler, "-fPIC", *flags("CPPFLAGS"), *flags("CXXFLAGS")]
            link_library = [*compiler, "-shared", "-Wl,--as-needed", *flags("LDFLAGS")]
            commands = {
                "compiler": compiler,
                "compiler_so": compile_object,
                "linker_so": link_library,
                "linker_exe": compiler,
            }
            for name in self.compiler.executables:
                if command := commands.get(name.removesuffix("_cxx")):
                    self.compiler.set_executable(name, command)
            super().build_extensions()

    class Wheel(bdist_wheel):
        def run(self) -> None:
            # Files of an earlier build that are no longer made would be packed, too.
            shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
            super().run()

        def get_tag(self) -> tuple[str, str, str]:
            return "py3", "none", super().get_tag()[2]  # no Python C API in the libraries

    setup(ext_modules=libraries, cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel})


if __name__ == "__main__":
    main()
