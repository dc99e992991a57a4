"""What is in the wheel, and that one binary can serve every torch from 2.10 on and every Python."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from tests.packaging.conftest import ROOT, run


@pytest.fixture(scope="module")
def libraries(installed: Path) -> list[Path]:
    return sorted((installed / "pairloss").glob("*.so"))


def test_wheel_is_for_any_python_3(wheel: Path) -> None:
    assert re.fullmatch(r"pairloss-[\d.]+-py3-none-\w+\.whl", wheel.name)


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("pairloss/**/*.py")}
    built = {"pairloss/_C.so", "pairloss/_build_info.json", "pairloss/py.typed"}
    autograd = {name for name in names if re.fullmatch(r"pairloss/_C_autograd_\w+\.so", name)}
    assert len(autograd) == 1
    assert names - autograd - {"pairloss/_C_cuda.so"} == sources | built


def test_wheel_needs_torch_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    needs = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    assert [need for need in needs if "extra ==" not in need] == ["torch>=2.10"]
    assert "\nLicense-Expression: BSD-3-Clause\n" in metadata


def test_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path, cwd=ROOT)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    csrc = {str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.*")}
    assert csrc | {"setup.py", "pyproject.toml", "LICENSE", "pairloss/py.typed"} <= names


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm (binutils)")
def test_libraries_use_the_stable_abi_alone(libraries: list[Path]) -> None:
    """And no Python C API. Autograd is not in it, and has a library for one version of torch."""
    for library in libraries:
        symbols = [line.split() for line in run("nm", "-D", library).splitlines()]
        undefined = [name for *_, kind, name in symbols if kind == "U"]
        unstable = [name for name in undefined if re.search(r"N(2at|3c10|5torch|5caffe)", name)]
        if library.name.startswith("_C_autograd_"):
            assert unstable
        else:
            assert any(name.startswith("aoti_torch_") for name in undefined)
            assert not unstable, f"{library.name} uses torch's C++, which differs by version"
        python = [name for *_, name in symbols if re.match(r"_?Py", name)]
        assert not python, f"{library.name} uses Python's C API, which differs by version"


@pytest.mark.skipif(not shutil.which("readelf"), reason="needs readelf (binutils)")
def test_libraries_need_no_python_and_no_cuda_runtime(libraries: list[Path]) -> None:
    for library in libraries:
        dynamic = run("readelf", "-d", library)
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
        assert not [name for name in needed if re.match(r"libpython|libcudart", name)]
        assert "libtorch_cpu.so" in needed
        assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)


def test_libraries_name_no_folder_of_the_build_machine(libraries: list[Path]) -> None:
    for library in libraries:
        content = library.read_bytes()
        assert b"csrc/" in content  # error messages do name sources
        for folder in (ROOT, Path(torch.__file__).parent):
            assert str(folder).encode() not in content
