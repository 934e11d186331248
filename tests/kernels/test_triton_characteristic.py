"""Characteristic functions and spreads, the GPU kernels run by Triton's interpreter, against the float64 twin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import mpmath
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in the environment: `make test` has a run for it", allow_module_level=True)

from pyssl_fast.kernels.reference import covariance as reference
from pyssl_fast.kernels.triton import configs, covariance
from pyssl_fast.kernels.triton.configs import Waves
from tests.contract import assert_within_contract
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
    pytest.mark.triton_interpreter,
    # The interpreter is numpy: what a GPU does silently, it announces.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    with configs.force(Waves(block_k=8, block_m=16, chunk=4, rows=8, parts=3, block_n=8)):
        yield


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_keeps_the_contract(case: Characteristic) -> None:
    check(covariance, case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["one sample", "an odd step"])
def test_keeps_the_contract_in_half_precision(name: str, dtype: torch.dtype) -> None:
    check(covariance, CASES[name], dtype)


@pytest.mark.parametrize(
    ("samples", "dim", "count"), [(3, 15, 7), (4, 16, 8), (8, 17, 9), (9, 3, 1), (24, 2, 3), (31, 5, 2)]
)
def test_keeps_the_contract_on_both_sides_of_block_edges(samples: int, dim: int, count: int) -> None:
    check(covariance, Characteristic(1, samples, dim, count))


def test_keeps_the_contract_as_it_ships() -> None:
    with configs.force(configs.WAVES):
        check(covariance, Characteristic(1, samples=70, dim=3, count=17))


@pytest.mark.parametrize("step", [2.0**-40, 0.1, 1.0, 1e9])
def test_any_angle_keeps_its_digits(step: float) -> None:
    # In 1,000 bits: whole turns go where float64 has no digit left.
    x = torch.tensor([0.0, -0.0, 1e-45, -3e-39, 0.3, -0.7 / step, 1e5, -123456789.0, 1e20, 3e38])
    found = covariance.characteristic(x[None, None], step, 1)
    with mpmath.workprec(1000):
        for mine, function in zip(found, (mpmath.cos, mpmath.sin), strict=True):
            want = [float(function(mpmath.mpf(float(value)) * mpmath.mpf(step))) for value in x]
            torch.testing.assert_close(mine[0, 0], torch.tensor(want, dtype=torch.float64), rtol=0, atol=2e-7)


def test_not_a_number_stays_in_its_column_and_its_gradient() -> None:
    case = Characteristic(samples=7, dim=9, count=3)
    x = values(case)
    for number, bad in enumerate((torch.nan, torch.inf, -torch.inf)):
        x[1, 3 + number, 2 * number] = bad
    ours, truth, eager = run(covariance, x, case), run(reference, x.double(), case), run(reference, x, case)
    assert ours["cosine"].isnan().sum() == 3 * case.count and ours["grad"].isnan().sum() == 3
    for what, mine in ours.items():
        assert_within_contract(mine, truth[what], eager[what], torch.float32, what)


def test_values_and_gradients_may_be_strided() -> None:
    case = replace(CASES["an odd step"], samples=5)
    x = values(case)
    expected = run(covariance, x, case)
    for other in (x.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT):
        for name, found in run(covariance, other, case).items():
            assert torch.equal(found, expected[name])
    weight = torch.tensor(0.3).double().expand(2, 5, 9)
    first, second = (covariance.characteristic_backward(w, w, x, case.step) for w in (weight, weight.contiguous()))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SPREADS.values(), ids=SPREADS)
def test_spread_keeps_the_contract(case: Spread, dtype: torch.dtype) -> None:
    check_spread(covariance, case, dtype)


def test_spread_of_not_a_number() -> None:
    x = values(Characteristic(3, 6, 5))
    x[2, 1, 3] = torch.nan
    assert covariance.spread(x, 2).isnan()
    gradient = covariance.spread_backward(torch.tensor(0.3).double(), x, 2)
    assert gradient.isnan().sum() == 3 and gradient[:, 1, 3].isnan().all()
