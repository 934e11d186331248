"""The covariance kernels on a real GPU, as they ship: every precision, the tiles' edges, and large sizes."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from pyssl_fast.kernels.triton import covariance
from tests.kernels import covariance_cases as cases
from tests.kernels.covariance_cases import AUTOS, CROSSES, DECORRELATIONS, Columns

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(63, 64), (64, 65), (127, 300), (128, 129), (300, 127), (129, 128), (256, 2048), (2048, 256), (5, 20000)]


@pytest.mark.parametrize("name", AUTOS)
def test_auto_covariance(name: str) -> None:
    cases.check_auto(covariance, AUTOS[name], device="cuda")


@pytest.mark.parametrize("name", CROSSES)
def test_cross_correlation(name: str) -> None:
    cases.check_cross(covariance, CROSSES[name], device="cuda")


@pytest.mark.parametrize("name", DECORRELATIONS)
def test_decorrelation(name: str) -> None:
    cases.check_decorrelation(covariance, DECORRELATIONS[name], device="cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("samples", "dim"), SIZES)
def test_sizes(samples: int, dim: int, dtype: torch.dtype) -> None:
    for scaled in (1.0, 1e3) if dtype != torch.float16 else (1.0,):
        case = Columns(samples, dim, scaled=scaled)
        # float16's gradients end at 65,504.
        weights = (1.0, 1.0 / dim, 1.0) if dtype == torch.float16 else (1.0, 1.0, 1.0)
        cases.check_auto(covariance, dataclasses.replace(case, positions=2), dtype, "cuda", weights=weights)
        cases.check_cross(covariance, case, dtype, "cuda", weights=weights[:2])
        cases.check_decorrelation(covariance, case, dtype, "cuda")


@pytest.mark.parametrize("name", ["rows", "columns", "one view"])
def test_nan_comes_out_as_nan(name: str) -> None:
    cases.check_auto_nan(covariance, AUTOS[name], "cuda")
    cases.check_cross_nan(covariance, CROSSES[name], "cuda")


@pytest.mark.parametrize("case", [Columns(256, 2048), Columns(2048, 256), Columns(256, 2048, scaled=1e3)], ids=str)
def test_same_bits_every_run(case: Columns) -> None:
    x, y = (v.cuda() for v in cases.inputs(case))
    for once, again in (
        (cases.run_auto(covariance, (x[:, None], y[:, None])) for _ in range(2)),
        (cases.run_cross(covariance, (x, y), 1e-5) for _ in range(2)),
    ):
        for name, value in once.items():
            assert torch.equal(value, again[name]), name


def test_memory_is_that_of_the_inputs() -> None:
    x, y = torch.randn(2, 512, 1, 65536, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = cases.run_auto(covariance, (x, y))
    torch.cuda.synchronize()
    assert all(v.isfinite().all() for v in result.values())
    assert torch.cuda.max_memory_allocated() - before <= 4 * x.nbytes  # C alone would be 16 GiB
