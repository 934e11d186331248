"""Characteristic functions and spreads on a real GPU, as they ship."""

from __future__ import annotations

import os

import pytest
import torch

from pyssl_fast.kernels.triton import covariance
from tests.kernels.characteristic_cases import (
    CASES,
    SPREADS,
    Characteristic,
    Spread,
    check,
    check_spread,
    run,
    values,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_keeps_the_contract(case: Characteristic, dtype: torch.dtype) -> None:
    check(covariance, case, dtype, "cuda")


@pytest.mark.parametrize(("samples", "dim", "count"), [(63, 63, 15), (65, 65, 17), (3000, 1024, 16)])
def test_keeps_the_contract_on_both_sides_of_block_edges(samples: int, dim: int, count: int) -> None:
    check(covariance, Characteristic(samples=samples, dim=dim, count=count), device="cuda")


def test_same_bits_again() -> None:
    case = Characteristic(samples=500, dim=200)
    x = values(case).cuda()
    first = run(covariance, x, case)
    for name, found in run(covariance, x, case).items():
        assert torch.equal(found, first[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SPREADS.values(), ids=SPREADS)
def test_spread_keeps_the_contract(case: Spread, dtype: torch.dtype) -> None:
    check_spread(covariance, case, dtype, "cuda")
