from __future__ import annotations

import pytest
import torch

from benchmarks import forms


def test_forms(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--sizes", "48x5", "--seconds", "0.05", "--threads", "1", "--markdown"]
    threads = torch.get_num_threads()
    assert forms.main(argv) == 0
    torch.set_num_threads(threads)
    output = capsys.readouterr().out
    for form in forms.FORMS:
        assert f"(48, 5) {form}" in output
    assert output.count("| eager ") == len(forms.FORMS)
    assert output.count("| a call each ") == 1


def test_methods_that_do_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(20, 4, requires_grad=True)

    def wrong(z: torch.Tensor) -> forms.Methods:
        methods = forms.weights(z)
        return {**methods, "wrong": lambda x: methods["eager"](x) * 1.01}

    monkeypatch.setitem(forms.FORMS, "weights", wrong)
    with pytest.raises(RuntimeError, match="weights: wrong gives"):
        forms.make_steps("weights", logits)
