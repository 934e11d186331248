"""Characteristic functions of columns, the C++ kernel: every instruction set against the float64 twin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyssl_fast import _cpu
from pyssl_fast.kernels.cpu import covariance
from pyssl_fast.kernels.reference import covariance as reference
from tests.contract import assert_within_contract
from tests.kernels.characteristic_cases import CASES, Characteristic, check, run, values

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# ---- the error contract ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_keeps_the_contract(isa: str, case: Characteristic, dtype: torch.dtype) -> None:
    check(covariance, case, dtype)


# Rows go in twos or fours, columns in blocks of 64; a few blocks are dealt out in parts of 128 rows and more.
@pytest.mark.parametrize("samples", [3, 5, 127, 256, 517])
@pytest.mark.parametrize("dim", [2, 63, 64, 65, 130])
def test_keeps_the_contract_on_both_sides_of_block_edges(isa: str, samples: int, dim: int) -> None:
    check(covariance, Characteristic(samples=samples, dim=dim, count=4))


@settings(max_examples=40, deadline=None)
@given(
    isa=st.sampled_from(_cpu.isas()),
    groups=st.integers(1, 4),
    samples=st.integers(1, 300),
    dim=st.integers(1, 80),
    count=st.integers(1, 40),
    step=st.floats(1e-3, 10),
    scale=st.sampled_from([1e-5, 1.0, 30.0, 1e4]),
)
def test_any_shape_keeps_the_contract(
    isa: str, groups: int, samples: int, dim: int, count: int, step: float, scale: float
) -> None:
    before = _cpu.isa()
    _cpu.set_isa(isa)
    try:
        check(covariance, Characteristic(groups, samples, dim, count, step, scale))
    finally:
        _cpu.set_isa(before)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_recurrence_loses_few_digits(isa: str, scale: float) -> None:
    # k² roundings at worst; 2,000 float32 ones in its place are 0.12 wrong.
    case = Characteristic(1, 3, 40, count=2000, step=2.0**-8, scale=scale)
    x = values(case)
    x[0, 0, :8] = torch.tensor([0.0, 1e-30, 1e-8, 1e-4, 804.24774, 804.2477, 402.12387, 1608.4955])  # πs on the grid
    ours, truth = (
        covariance.characteristic(x, case.step, case.count),
        reference.characteristic(x.double(), case.step, 2000),
    )
    for mine, want in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=2e-9)


def test_not_a_number_stays_in_its_column_and_its_gradient(isa: str) -> None:
    case = Characteristic(samples=70, dim=67)
    x = values(case)
    for number, bad in enumerate((torch.nan, torch.inf, -torch.inf)):
        x[1, 11 + number, 5 + 30 * number] = bad
    ours, truth, eager = run(covariance, x, case), run(reference, x.double(), case), run(reference, x, case)
    assert ours["cosine"].isnan().sum() == 3 * case.count and ours["grad"].isnan().sum() == 3
    for what, mine in ours.items():
        assert_within_contract(mine, truth[what], eager[what], torch.float32, what)


# ---- sine and cosine -------------------------------------------------------------------------------------------------


def sincos(x: Tensor) -> tuple[Tensor, Tensor]:
    """The kernels' sine and cosine of float32 angles [D], in float64."""
    cosine, sine = covariance.characteristic(x[None, None], 1.0, 1)
    return sine[0, 0], cosine[0, 0]


def test_sine_and_cosine_to_the_last_place(isa: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1.0, 10.0, 1e3, 1e6):
        x = (torch.rand(20_000, generator=generator) * 2 - 1) * size
        exact = x.double().numpy().astype(np.longdouble)
        for mine, want in zip(sincos(x), (np.sin(exact), np.cos(exact)), strict=True):
            assert np.abs(mine.numpy() - want).max() <= 1.7e-16


def test_sine_and_cosine_of_large_angles(isa: str) -> None:
    x = 2.0 ** torch.linspace(20, 47.9, 5000)
    exact = x.double().numpy().astype(np.longdouble)
    for mine, want in zip(sincos(x), (np.sin(exact), np.cos(exact)), strict=True):
        assert (np.abs(mine.numpy() - want) <= 2e-16 * exact + 1.7e-16).all()
        assert np.abs(mine.numpy()).max() <= 1 + 1e-15


def test_sine_and_cosine_at_the_ends(isa: str) -> None:
    tiny = torch.tensor([0.0, -0.0, 1e-45, -1e-38, 1e-20])
    sine, cosine = sincos(tiny)
    assert torch.equal(sine, tiny.double()) and torch.equal(cosine, torch.ones(5).double())
    sine, cosine = sincos(torch.tensor([2.0**49, -3e38]))  # no digit of the angle is left
    assert torch.equal(sine, torch.zeros(2).double()) and torch.equal(cosine, torch.ones(2).double())
    for found in sincos(torch.tensor([torch.nan, torch.inf, -torch.inf])):
        assert found.isnan().all()


# ---- what must hold besides ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("groups", "samples", "dim"), [(1, 700, 5), (2, 301, 150)])
def test_bits_do_not_depend_on_the_thread_count(isa: str, groups: int, samples: int, dim: int) -> None:
    case = Characteristic(groups, samples, dim)
    x = values(case)
    torch.set_num_threads(1)
    first = run(covariance, x, case)
    for threads in (2, 3, 7, 2):
        torch.set_num_threads(threads)
        for name, found in run(covariance, x, case).items():
            assert torch.equal(found, first[name]), f"{name}, {threads} threads"


def test_values_and_gradients_may_be_strided(isa: str) -> None:
    case = Characteristic(groups=3, samples=21, dim=33)
    x = values(case)
    expected = run(covariance, x, case)
    wide = torch.zeros(3, 30, 50)
    wide[:, 4:25, 8:41] = x
    for other in (
        wide[:, 4:25, 8:41],
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.mT.contiguous().mT,
        x.flip(0).contiguous().flip(0),
    ):
        for name, found in run(covariance, other, case).items():
            assert torch.equal(found, expected[name])
    same = x[:1].expand(3, -1, -1)
    assert torch.equal(covariance.characteristic(same, case.step, 16)[0][2], expected["cosine"][0])
    weight = torch.tensor(0.3).double().expand(3, 16, 33)
    full = weight.contiguous()
    first, second = (covariance.characteristic_backward(w, w, x, case.step) for w in (weight, full))
    assert torch.equal(first, second)


def test_padding_is_not_read(isa: str) -> None:
    case = replace(CASES["plain"], dim=65)
    wide = torch.full((2, 20, 80), torch.nan)
    wide[:, :, :65] = values(case)
    for name, found in run(covariance, wide[:, :, :65], case).items():
        assert torch.equal(found, run(covariance, values(case), case)[name])
