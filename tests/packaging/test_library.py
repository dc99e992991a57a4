"""What a user is told where a library cannot be loaded; that the reference works all the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pairloss import _library
from tests.packaging.conftest import ROOT, run

PROGRAM = """
import torch, pairloss
logits, labels = torch.randn(8, 3), torch.arange(8) % 3
assert pairloss.pair_kl_hinge_loss(logits, labels, impl="reference") > 0
for device_type in ("cpu", "cuda"):
    try:
        pairloss._library.require(device_type)
        print(device_type, "works")
    except RuntimeError as error:
        print(device_type, "fails:", error)
try:
    pairloss.pair_kl_hinge_loss(logits, labels)
except RuntimeError as error:
    print("the call fails:", error)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without its libraries."""
    folder = tmp_path / "pairloss"
    ignored = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    shutil.copytree(ROOT / "pairloss", folder, ignore=ignored)
    return folder


def output(package: Path, *program: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    return run(sys.executable, *program, cwd="/", env=environment)


def note_build(package: Path, **info: object) -> None:
    build = json.loads((ROOT / "pairloss" / "_build_info.json").read_text())
    (package / "_build_info.json").write_text(json.dumps({**build, **info}))


def test_the_build_under_test_loads() -> None:
    status = _library.status()
    assert status.cpu_problem is None
    _library.require("cpu")
    _library.require("meta")
    if status.build["cuda"] and torch.version.cuda:
        assert status.cuda_problem is None
        _library.require("cuda")


def test_no_kernels_for_this_device() -> None:
    with pytest.raises(RuntimeError, match="no kernels for 'mps'.*\n.*reference"):
        _library.require("mps")


def test_never_built(package: Path) -> None:
    printed = output(package, "-c", PROGRAM)
    assert f"cpu fails: pairloss's compiled library is missing: there is no {package}" in printed
    assert "cuda fails: pairloss's compiled library is missing" in printed
    assert "the call fails: pairloss's compiled library is missing" in printed
    assert "make build" in printed
    assert 'impl="reference"' in printed


def test_not_a_library(package: Path) -> None:
    (package / "_C.so").write_text("not a library")
    note_build(package, torch="9.9.9", cuda="99.9")
    printed = output(package, "-c", PROGRAM)
    assert f"could not load {package}/_C.so" in printed
    assert "built for  torch 9.9.9, CUDA 99.9" in printed
    assert f"you have   torch {torch.__version__}, " in printed
    assert "pip install --no-build-isolation" in printed


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_symbol_that_this_torch_has_not(package: Path) -> None:
    source = "void torch_of_the_future(void); void f(void) { torch_of_the_future(); }"
    command = ["gcc", "-shared", "-fPIC", "-Wl,-z,now", "-xc", "-", "-o", package / "_C.so"]
    subprocess.run(command, input=source, text=True, check=True)
    printed = output(package, "-c", PROGRAM)
    assert "undefined symbol: torch_of_the_future" in printed
    assert "built for  torch unknown" in printed


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch with CUDA")
def test_built_without_cuda(package: Path) -> None:
    shutil.copy(ROOT / "pairloss" / "_C.so", package)
    note_build(package, cuda=None, no_cuda="no CUDA toolkit anywhere")
    printed = output(package, "-c", PROGRAM)
    assert "cpu works" in printed
    assert "cuda fails: pairloss was built without CUDA: no CUDA toolkit anywhere." in printed
    assert "FORCE_CUDA=1 pip install" in printed
    assert "the call" not in printed


def test_env_report() -> None:
    printed = run(sys.executable, "-m", "pairloss.env_report", cwd=ROOT)
    for name in ("pairloss", "torch", "Python", "built with", "built for", "CPU kernels", "GPUs"):
        assert f"\n{name} " in f"\n{printed}"


@pytest.mark.parametrize(("asked", "name"), [("default", "baseline"), ("nonsense", "")])
def test_env_report_names_the_cpu_kernels(asked: str, name: str) -> None:
    environment = {**os.environ, "PAIRLOSS_CPU_CAPABILITY": asked}
    printed = run(sys.executable, "-m", "pairloss.env_report", cwd=ROOT, env=environment)
    assert re.search(rf"^CPU kernels +{name}.*\(PAIRLOSS_CPU_CAPABILITY={asked}\)$", printed, re.M)
    assert "code" not in printed


def test_env_report_where_nothing_works(package: Path) -> None:
    (package / "_C.so").write_text("not a library")
    printed = output(package, "-m", "pairloss.env_report")
    assert "could not load" in printed
