"""The counts of a kernel's machine code, from a listing as cuobjdump makes it."""

from __future__ import annotations

import sys

import pytest

from benchmarks import gpu_sass

LISTING = """
	code for sm_90
		Function : _ZN8pairloss4cuda5countEv
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                   /* 0x00000a00ff017b82 */
                                                                            /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.64 R2, desc[UR4][R2.64] ;          /* 0x0000000402027981 */
                                                                            /* 0x000ea8000c1e1900 */
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;     /* 0x000000020804723c */
                                                                            /* 0x000fe20000041804 */
        /*0030*/              @!P0 FFMA R6, R6, R7, R8 ;                    /* 0x0000000706060223 */
                                                                            /* 0x000fe20000000008 */
        /*0040*/               @P1 BRA 0x20 ;                               /* 0x00000000fff41947 */
                                                                            /* 0x000fea000383ffff */
        /*0050*/                   EXIT ;                                   /* 0x000000000000794d */
                                                                            /* 0x000fea0003800000 */
"""


def test_blocks_and_kinds() -> None:
    ((name, code),) = gpu_sass.kernels(LISTING)
    assert name == "count"
    kinds = [[instruction.kind for instruction in block] for block in gpu_sass.blocks(code)]
    assert kinds == [["other", "global"], ["tensor", "float", "other"], ["other"]]


def test_a_kernel_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_sass, "find_cuobjdump", lambda: "true")
    monkeypatch.setattr(sys, "argv", ["gpu_sass", "k.cubin", "some_kernel"])
    with pytest.raises(SystemExit):
        gpu_sass.main()
    assert "no some_kernel for sm_90 in k.cubin" in capsys.readouterr().err
