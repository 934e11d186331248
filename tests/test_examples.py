"""The examples run as they are, and say what is true."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_ressl_agrees_with_the_formula_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "ressl.py"))
    example["main"]()
    printed = capsys.readouterr().out.splitlines()
    losses, gradients = zip(
        *(map(float, re.findall(r"(?:loss|\|gradient\|) +([\d.]+)", line)) for line in printed), strict=True
    )
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and gradients[0] == pytest.approx(gradients[1], abs=1e-6)

    torch.manual_seed(0)
    student, teacher, keys = (
        torch.randn(9, 6),
        torch.randn(9, 6),
        torch.nn.functional.normalize(torch.randn(40, 6), dim=1),
    )
    student.requires_grad_()
    ours, theirs = (example[name](student, teacher, keys) for name in ("ressl", "written_out"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (ours, theirs)), rtol=1e-5, atol=1e-6)
