"""The kernels with one idea switched off at a time: what benchmarks.ablation compares is one loss.

Here the kernels alone, hardly optimised, which compiles in seconds; the benchmark itself compares
the libraries that it times.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablation, variants
from benchmarks.record import capability
from tests import truth
from tests.native_build import ROOT, SANITIZE, compile_once, headers
from tests.tolerances import assert_close

CPU = ROOT / "csrc" / "cpu"
DRIVER = Path(__file__).with_name("kernel_without_an_idea.cpp")
SCALE = 0.37
KERNELS = {idea: names[0] for idea, names in ablation.kernels_of_ideas(capability()).items()}


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray, truth.Truth]:
    """Tiles of 256 rows, with certain blocks, words that are nearly empty or full, and others."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 700)
    centres = 1.5 * rng.standard_normal((6, 34))
    confidence = rng.uniform(0.1, 2.0, (700, 1))
    logits = (confidence * centres[labels] + 0.5 * rng.standard_normal((700, 34))).astype("f")
    result = truth.evaluate(logits, labels, 2.0)
    margin = truth.margin_in_a_gap(result.divergence[result.dissimilar], 2.0)
    result = result.with_margin(margin)
    assert 0.2 < result.active.sum() / result.dissimilar.sum() < 0.8
    return logits, labels, result


def compile_kernel(idea: str, kernels: str) -> tuple[Path, list[Path]]:
    """The library, and its objects."""
    isa = "baseline" if kernels == "default" else kernels
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-O0", "-w", f"-I{ROOT / 'csrc'}"]
    kernel = CPU / f"pair_kl_hinge_{isa}.cpp"
    sources = [DRIVER, CPU / "schedule.cpp", CPU / "arena.cpp", CPU / "labels.cpp"]
    # A switch that is in none of these is in the kernel's headers.
    switched = [path for path in sources if f"Idea::{idea}" in path.read_text()] or [kernel]
    objects = []
    for source in (*sources, kernel):
        switch = f"-DPAIRLOSS_WITHOUT={idea if source in switched else variants.WHOLE}"
        arguments = [*flags, switch, f"-DTESTED_ISA={isa}", "-c", str(source)]
        objects.append(compile_once(f"{source.stem}.o", arguments, [*headers("cpu/*.h"), source]))
    return compile_once("kernel.so", ["-shared", *map(str, objects)], objects), objects


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], tuple[Path, list[Path]]]:
    wanted = [(variants.WHOLE, kernels) for kernels in dict.fromkeys(KERNELS.values())]
    wanted += KERNELS.items()
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(wanted, pool.map(lambda one: compile_kernel(*one), wanted), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(SANITIZE, reason="the switches are no code of their own")
@pytest.mark.parametrize("idea", [variants.WHOLE, *KERNELS])
def test_result_without_an_idea(
    idea: str,
    batch: tuple[np.ndarray, np.ndarray, truth.Truth],
    compiled: dict[tuple[str, str], tuple[Path, list[Path]]],
) -> None:
    kernels = KERNELS.get(idea, capability())
    library, objects = compiled[idea, kernels]
    if idea != variants.WHOLE:  # the switch does something
        _, whole = compiled[variants.WHOLE, kernels]
        pairs = zip(objects, whole, strict=True)
        assert any(mine.read_bytes() != theirs.read_bytes() for mine, theirs in pairs)

    logits, labels, expected = batch
    differentiate = ctypes.CDLL(str(library)).differentiate
    differentiate.restype = ctypes.c_double
    grad = np.full(logits.shape, np.nan, np.float32)
    loss = differentiate(
        logits.ctypes.data_as(ctypes.c_void_p),
        labels.astype(np.int64).ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(logits.shape[0]),
        ctypes.c_int64(logits.shape[1]),
        ctypes.c_double(expected.margin),
        ctypes.c_double(SCALE),
        grad.ctypes.data_as(ctypes.c_void_p),
    )
    assert_close(loss, SCALE * expected.loss("sum"), 1e-6)
    assert_close(grad, SCALE * expected.grad("both", "sum"), 1e-5)


def test_every_idea_is_in_the_kernels() -> None:
    ideas = variants.read_ideas()
    assert len(ideas) == len(set(ideas)) > 5 and variants.WHOLE not in ideas
    text = "".join(path.read_text() for path in CPU.iterdir() if path != variants.HEADER)
    assert [idea for idea in ideas if f"uses<Idea::{idea}>" not in text] == []


def test_only_what_differs_is_compiled_again() -> None:
    lines = variants.ninja_file({"certificates": ("amx",)}).splitlines()
    outputs = [line.split()[1] for line in lines if ": compile " in line]
    own = {output for output in outputs if output.startswith("certificates/")}
    assert own == {f"certificates/{name}.o:" for name in ("pair_kl_hinge_amx", "arena", "labels")}
    (link,) = (line for line in lines if line.startswith("build certificates/pairloss/_C.so"))
    assert len(link.split()) == 3 + len(outputs) - len(own)


def test_ideas_that_are_none() -> None:
    with pytest.raises(ValueError, match="expected some of .*certificates.*, got {'luck'}"):
        variants.build({"luck": ("avx2",)})


def test_ideas_are_switched_off_where_they_are_on() -> None:
    amx, avx2 = (ablation.kernels_of_ideas(best) for best in ("amx", "avx2"))
    assert amx["matrix_unit"] == amx["totals"] == ("amx",)
    assert amx["subset_sums"] == ("avx512",) and amx["coarse_first"] == ("amx", "avx512")
    assert set(amx) == set(variants.read_ideas())
    assert "matrix_unit" not in avx2 and set(avx2.values()) == {("avx2",)}
