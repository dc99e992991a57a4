"""What pairloss was built for and what it runs with: ``python -m pairloss.env_report``.

Put its output into a bug report.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import torch

from pairloss import _library
from pairloss._version import __version__

_WIDTH = 24
_CAPABILITIES = {0: "baseline", 1: "AVX2", 2: "AVX-512", 3: "AMX"}


def report() -> str:
    return "\n".join(f"{name:<{_WIDTH}}{value}" for name, value in _rows())


def _rows() -> Iterator[tuple[str, str]]:
    status = _library.status()
    yield "pairloss", f"{__version__} in {os.path.dirname(os.path.abspath(__file__))}"
    yield "torch", f"{torch.__version__}, {_cuda(torch.version.cuda)}"
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    if status.build:
        build = status.build
        yield (
            "built with",
            f"torch {build['torch']}, {build['compiler']}"
            + (", DEBUG=1" if build["debug"] else ""),
        )
        yield (
            "built for",
            f"{_cuda(build['cuda'])}, compute capabilities {' '.join(build['cuda_archs'])}"
            if build["cuda"]
            else f"CPU only ({build['no_cuda']})",
        )
    yield "CPU library (_C)", _indented(status.cpu_problem) or "loaded"
    yield "CUDA library (_C_cuda)", _indented(status.cuda_problem) or "loaded"
    yield "autograd in C++", _indented(status.autograd_problem) or "loaded"
    if status.cpu_loaded:
        code = torch.ops.pairloss.cpu_capability()
        yield "CPU kernels", _CAPABILITIES.get(code, f"code {code}") + _forced()
    yield "CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    yield "GPUs", "\n".join(_gpus()) or "none visible"


def _cuda(version: str | None) -> str:
    return f"CUDA {version}" if version else "no CUDA"


def _forced() -> str:
    forced = os.environ.get("PAIRLOSS_CPU_CAPABILITY")
    return f" (PAIRLOSS_CPU_CAPABILITY={forced})" if forced else ""


def _gpus() -> Iterator[str]:
    for index in range(torch.cuda.device_count()):
        try:
            major, minor = torch.cuda.get_device_capability(index)
            yield f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
        except Exception as error:  # a broken driver is what this report is read for
            yield f"number {index} cannot be used: {error}"


def _indented(text: str | None) -> str:
    return (text or "").replace("\n", "\n" + " " * _WIDTH)


if __name__ == "__main__":
    print(report())
