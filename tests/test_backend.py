from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import pyssl_fast
from pyssl_fast import backend
from pyssl_fast.functional import nt_xent

Z = torch.randn(6, 4)


def test_auto_chooses_by_device_and_dtype() -> None:
    assert backend.choose("similarity", Z) == "cpu"
    assert backend.choose("similarity", Z.double()) == "reference"
    assert backend.choose("similarity", Z.to("meta")) == "reference"


def test_use_backend_nests_and_restores() -> None:
    before = backend.selected()
    with pyssl_fast.use_backend("reference"):
        with pyssl_fast.use_backend("cpu"):
            assert backend.choose("similarity", Z) == "cpu"
        assert backend.choose("similarity", Z) == "reference"
    with pytest.raises(KeyError), pyssl_fast.use_backend("reference"):
        raise KeyError
    assert backend.selected() == before


def test_the_backend_asked_for_really_runs() -> None:
    names = []
    for name in ("reference", "cpu"):
        graph = torch.fx.experimental.proxy_tensor.make_fx(lambda a, b: nt_xent(a, b))
        with pyssl_fast.use_backend(name):
            names += [n.args[-1] for n in graph(Z, Z).graph.nodes if "pyssl_fast.contrast" in str(n.target)]
    assert names == ["reference", "cpu"]


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("cuda", Z, "there are no cuda kernels for the similarity family"),
        ("triton", Z, "the tensors are on the CPU"),
        ("cpu", Z.double(), "it has no kernels for torch.float64"),
        ("cpu", Z.to("meta"), "the tensors are on meta"),
    ],
)
def test_a_backend_that_cannot_run_says_why(name: str, x: torch.Tensor, message: str) -> None:
    if name == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted, Triton runs on the CPU")
    with pyssl_fast.use_backend(name), pytest.raises(RuntimeError, match=f"'{name}' cannot run here: .*{message}"):
        nt_xent(x, x)


def test_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*; got 'gpu'"), pyssl_fast.use_backend("gpu"):
        pass


def test_environment_chooses() -> None:
    code = "import torch; from pyssl_fast import backend; print(backend.choose('similarity', torch.zeros(2, 2)))"
    for name, want in (("reference", "reference"), ("cpu", "cpu"), ("", "cpu")):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYSSL_FAST_BACKEND": name}, capture_output=True, text=True
        )
        assert done.stdout.strip() == want, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYSSL_FAST_BACKEND": "gpu"}, capture_output=True, text=True
    )
    assert "PYSSL_FAST_BACKEND must be one of" in done.stderr
