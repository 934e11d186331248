"""Views around the mean of some, the C++ kernel: every instruction set against the float64 twin."""

from __future__ import annotations

import pytest
import torch

from pyssl_fast.kernels.cpu import covariance
from tests.kernels.characteristic_cases import SPREADS, Characteristic, Spread, check_spread, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SPREADS.values(), ids=SPREADS)
def test_keeps_the_contract(isa: str, case: Spread, dtype: torch.dtype) -> None:
    check_spread(covariance, case, dtype)


@pytest.mark.parametrize("elements", [511, 512, 513, 1025])
def test_keeps_the_contract_on_both_sides_of_block_edges(isa: str, elements: int) -> None:
    check_spread(covariance, Spread(views=3, samples=1, dim=elements))


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_the_thread_count(isa: str) -> None:
    x, weight, found = values(Characteristic(3, 20, 300)), torch.tensor(0.3).double(), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found.append((covariance.spread(x, 2), covariance.spread_backward(weight, x, 2)))
    for distance, grad in found[1:]:
        assert torch.equal(distance, found[0][0]) and torch.equal(grad, found[0][1])


def test_views_may_be_strided(isa: str) -> None:
    x, weight = values(Characteristic(3, 6, 5)), torch.tensor(0.3).double()
    for other in (x.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT):
        assert torch.equal(covariance.spread(other, 2), covariance.spread(x, 2))
        assert torch.equal(covariance.spread_backward(weight, other, 2), covariance.spread_backward(weight, x, 2))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_not_a_number_comes_out(isa: str, bad: float) -> None:
    x, weight = values(Characteristic(3, 6, 5)), torch.tensor(0.3).double()
    x[2, 1, 3] = bad
    assert not covariance.spread(x, 2).isfinite()
    gradient = covariance.spread_backward(weight, x, 2)
    assert gradient.isfinite().sum() == 3 * 29 and not gradient[:, 1, 3].isfinite().any()
