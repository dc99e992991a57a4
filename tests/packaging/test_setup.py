"""How setup.py decides what to build, with toolkits made of empty files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.packaging.conftest import ROOT

KERNELS = ["csrc/cuda/some.cu"]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py, on a machine with torch for CUDA 13.0 and no toolkit."""
    spec = importlib.util.spec_from_file_location("pairloss_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CUDA_HOME", "CUDA_PATH", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module.torch.version, "cuda", "13.0")
    monkeypatch.setattr(module.cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(
        module.glob, "glob", lambda pattern: sorted(map(str, tmp_path.glob("cuda*")))
    )
    return module


def make_toolkit(home: Path, version: int, include: str = "include") -> Path:
    for name in ("bin/nvcc", f"{include}/cuda_runtime_api.h"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text(f"#define CUDART_VERSION  {version}\n")
    return home


def test_no_toolkit_is_a_cpu_build(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit, why = setup.cuda_toolkit(KERNELS)
    assert toolkit is None and why.startswith("no CUDA toolkit")
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="FORCE_CUDA=1, but .* no CUDA toolkit"):
        setup.cuda_toolkit(KERNELS)


def test_torch_without_cuda_is_a_cpu_build(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_toolkit(tmp_path / "cuda", 13000)
    monkeypatch.setattr(setup.torch.version, "cuda", None)
    toolkit, why = setup.cuda_toolkit(KERNELS)
    assert toolkit is None and why.endswith("is a build without CUDA")


def test_force_cuda_0(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_toolkit(tmp_path / "cuda", 13000)
    assert setup.cuda_toolkit(KERNELS)[0] is not None
    monkeypatch.setenv("FORCE_CUDA", "0")
    assert setup.cuda_toolkit(KERNELS) == (None, "FORCE_CUDA=0")


def test_another_major_version_is_a_cpu_build(setup: ModuleType, tmp_path: Path) -> None:
    make_toolkit(tmp_path / "cuda-12.8", 12080)
    toolkit, why = setup.cuda_toolkit(KERNELS)
    assert toolkit is None and "torch was built for CUDA 13.0, the toolkit is CUDA 12.8" in why


def test_toolkit_of_torchs_version_is_preferred(setup: ModuleType, tmp_path: Path) -> None:
    make_toolkit(tmp_path / "cuda-12.8", 12080)
    wanted = make_toolkit(tmp_path / "cuda-13.1", 13010)
    assert setup.cuda_toolkit(KERNELS)[0] == setup.Toolkit(wanted, wanted / "include", (13, 1))


def test_toolkit_of_conda(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    include = "targets/x86_64-linux/include"
    home = make_toolkit(tmp_path / "environment", 13000, include)
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert setup.cuda_toolkit(KERNELS)[0] == setup.Toolkit(home, home / include, (13, 0))


def test_toolkit_that_is_named_is_taken(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_toolkit(tmp_path / "cuda-13.0", 13000)
    wanted = make_toolkit(tmp_path / "elsewhere", 13020)
    monkeypatch.setenv("CUDA_HOME", str(wanted))
    assert setup.cuda_toolkit(KERNELS)[0].home == wanted


def test_torchs_wrong_guess_is_passed_over(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """nvcc in /usr/local/bin is a wrapper: torch takes /usr/local, which has no headers."""
    (tmp_path / "usr").mkdir()
    monkeypatch.setattr(setup.cpp_extension, "CUDA_HOME", str(tmp_path / "usr"))
    wanted = make_toolkit(tmp_path / "cuda", 13000)
    assert setup.cuda_toolkit(KERNELS)[0].home == wanted


def test_toolkit_behind_a_link_to_nvcc(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = make_toolkit(tmp_path / "opt", 13000)
    (tmp_path / "nvcc").symlink_to(wanted / "bin" / "nvcc")
    monkeypatch.setattr(setup.shutil, "which", lambda name: str(tmp_path / "nvcc"))
    assert setup.cuda_toolkit(KERNELS)[0].home == wanted


def test_compute_capabilities(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = {"80", "86", "89", "90"}, {"75", "80", "86", "89", "90", "90a", "100", "120"}
    assert setup.cuda_archs(old) == ["8.0", "8.6", "8.9", "9.0+PTX"]
    assert setup.cuda_archs(new) == ["8.0", "8.6", "8.9", "9.0", "10.0+PTX", "12.0+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a;12.0+PTX")
    archs = setup.cuda_archs(new)
    assert archs == ["8.0", "9.0a", "12.0+PTX"]
    assert setup.gencode(archs) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
    monkeypatch.setattr(setup.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(setup.torch.cuda, "get_device_capability", lambda i: (9, 0))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "native")
    assert setup.cuda_archs(new) == ["9.0"]
    monkeypatch.setattr(setup.torch.cuda, "get_device_capability", lambda i: (13, 0))
    assert setup.cuda_archs(new) == ["8.0+PTX"]


@pytest.mark.parametrize("wrong", ["Hopper", "90", "13.7", "9.0+SASS"])
def test_capability_that_is_none(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wrong)
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST has"):
        setup.cuda_archs({"80", "90"})
