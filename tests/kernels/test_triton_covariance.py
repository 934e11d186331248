"""The covariance kernels for GPUs, run by Triton's interpreter on the CPU, against the float64 twin."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in the environment: `make test` has a run for it", allow_module_level=True)

from pyssl_fast.kernels.reference import covariance as reference
from pyssl_fast.kernels.triton import configs, covariance
from pyssl_fast.kernels.triton.configs import Row, Tile
from pyssl_fast.kernels.triton.covariance import kernels
from tests.kernels import covariance_cases as cases
from tests.kernels.covariance_cases import AUTOS, CROSSES, DECORRELATIONS, Columns

pytestmark = [
    pytest.mark.triton_interpreter,
    # The interpreter is numpy: what a GPU does silently, it announces.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

ROW = Row(block_r=16, block_d=32)
TILE = Tile(32, 32, 16, warps=4, stages=2, programs=6)
SMALL = Tile(16, 16, 16, warps=4, stages=2, programs=9)
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def small_tiles() -> Iterator[None]:
    with configs.force(TILE, ROW):
        yield


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


# ---- every operator, every case -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUTOS)
def test_auto_covariance(name: str) -> None:
    cases.check_auto(covariance, AUTOS[name])


@pytest.mark.parametrize("name", CROSSES)
def test_cross_correlation(name: str) -> None:
    cases.check_cross(covariance, CROSSES[name])


@pytest.mark.parametrize("name", DECORRELATIONS)
def test_decorrelation(name: str) -> None:
    cases.check_decorrelation(covariance, DECORRELATIONS[name])


# float16's gradients end at 65,504.
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["rows", "columns", "three positions", "tiny columns", "two samples"])
def test_auto_covariance_in_half_precision(name: str, dtype: torch.dtype) -> None:
    cases.check_auto(covariance, AUTOS[name], dtype)


@pytest.mark.parametrize("name", ["a column times 30", "a column times 1e4", "a column times 1e4, columns"])
def test_a_dominating_column_in_bfloat16(name: str) -> None:
    cases.check_auto(covariance, AUTOS[name], torch.bfloat16)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["rows", "columns", "one view", "a column times 30", "constant columns"])
def test_cross_correlation_in_half_precision(name: str, dtype: torch.dtype) -> None:
    cases.check_cross(covariance, CROSSES[name], dtype)
    cases.check_decorrelation(covariance, CROSSES[name], dtype)


# ---- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "dim"),
    [
        pytest.param(15, 16, id="rows, tile edge - 1"),
        pytest.param(16, 17, id="rows, tile edge, step edge + 1"),
        pytest.param(17, 33, id="rows, tile edge + 1"),
        pytest.param(33, 47, id="rows, three tiles, step edge - 1"),
        pytest.param(16, 15, id="columns, tile edge - 1"),
        pytest.param(31, 16, id="columns, tile edge, step edge - 1"),
        pytest.param(33, 17, id="columns, tile edge + 1"),
    ],
)
def test_block_edges(samples: int, dim: int) -> None:
    with configs.force(SMALL, Row(block_r=16, block_d=16)):
        cases.check_auto(covariance, Columns(samples, dim, positions=1))
        cases.check_cross(covariance, Columns(samples, dim))
        cases.check_decorrelation(covariance, Columns(samples, dim))


@pytest.mark.parametrize("blocks", [1, 2, 3, 90, 91, 5000])
def test_every_tile_of_the_triangle_has_a_number(blocks: int) -> None:
    # _tile, in the arithmetic of a GPU; the ends of columns are where a rounded root errs.
    t = np.unique(np.clip([c * (c + 1) // 2 + s for c in range(blocks + 1) for s in (-1, 0, 1)], 0, None))
    t = t[t < blocks * (blocks + 1) // 2].astype(np.int64)
    column = ((np.sqrt(np.float32(8) * t.astype(np.float32) + np.float32(1)) - np.float32(1)) * np.float32(0.5)).astype(
        np.int64
    )
    column = np.where(column * (column + 1) // 2 > t, column - 1, column)
    column = np.where((column + 1) * (column + 2) // 2 <= t, column + 1, column)
    row = t - column * (column + 1) // 2
    assert (row >= 0).all() and (row <= column).all() and (column < blocks).all()


@pytest.mark.parametrize("name", ["long rows", "long columns"])
def test_sums_in_links(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covariance, "CHAIN", 2)
    with configs.force(Tile(32, 32, 16, warps=4, stages=2, programs=1)):
        cases.check_auto(covariance, AUTOS[name])
        cases.check_cross(covariance, CROSSES[name])


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows", "columns"])
@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)], ids=str)
def test_each_incoming_gradient_alone(name: str, weights: tuple[float, float, float]) -> None:
    cases.check_auto(covariance, AUTOS[name], weights=weights)
    if any(weights[:2]):
        cases.check_cross(covariance, CROSSES[name], weights=weights[:2])


@pytest.mark.parametrize("name", ["rows", "columns", "a column times 1e3"])
@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=str)
def test_one_view_gets_a_gradient(name: str, needs: tuple[bool, bool]) -> None:
    for result in (
        cases.check_auto(covariance, AUTOS[name], needs=needs),
        cases.check_cross(covariance, CROSSES[name], needs=needs),
    ):
        assert [bool(result[n].numel()) for n in ("grad_x", "grad_y")] == list(needs)


@pytest.mark.parametrize("name", ["rows", "columns", "a column times 1e4", "one view"])
def test_without_a_gradient_nothing_is_kept(name: str) -> None:
    cases.check_auto_without_gradient(covariance, AUTOS[name])
    cases.check_cross_without_gradient(covariance, CROSSES[name])


# ---- numerics -------------------------------------------------------------------------------------------------------


def test_float64_is_for_what_needs_it() -> None:
    for name, expected in (("rows", False), ("columns", False), ("two samples", False), ("tiny columns", False),
                           ("constant columns", False), ("a column times 30", True)):  # fmt: skip
        exact = covariance.auto_covariance(*cases.inputs(AUTOS[name]), True)[4]
        assert (exact == expected).all(), name
    # The weights bring every column to one size; unless eps keeps the others small.
    for name, expected in (("a column times 1e4", False), ("a column times 1e4, large eps", True)):
        case = CROSSES[name]
        exact = covariance.cross_correlation(*cases.inputs(case), case.eps, True)[3]
        assert (exact == expected).all(), name


def test_each_view_and_position_has_its_own_flag() -> None:
    x, y = cases.inputs(Columns(11, 50, positions=2))
    y = y.clone()
    y[:, 1, 7] *= 1e3
    assert covariance.auto_covariance(x, y, True)[4].tolist() == [[False, False], [False, True]]
    cases.check_auto(covariance, Columns(11, 50, positions=2), views=(x, y))


@pytest.mark.parametrize("scale", [1e12, 1e-14, 1e-20])
@pytest.mark.parametrize("name", ["rows", "columns"])
def test_squares_beyond_float32(name: str, scale: float) -> None:
    # Of sums of fourth powers of them nothing is left in float32, nor in eager, whose error would excuse all.
    x, y = (v * scale for v in cases.inputs(AUTOS[name]))
    ours = cases.run_auto(covariance, (x, y), weights=(0.0, 1.0, 0.0))
    truth = cases.run_auto(reference, (x.double(), y.double()), weights=(0.0, 1.0, 0.0))
    for result in ("square", "off_diagonal", *(("grad_x", "grad_y") if scale > 1e-20 else ())):
        error = (ours[result].double() - truth[result]).abs().max() / truth[result].abs().max()
        assert error < 2e-6 or truth[result].abs().max() < 1e-37, result


@pytest.mark.parametrize("precision", ["high"], indirect=True)
@pytest.mark.parametrize("name", ["rows", "columns"])
def test_tf32_is_rounded_without_bias(name: str, precision: None) -> None:
    views = cases.inputs(AUTOS[name])
    ours = cases.run_auto(covariance, views)
    truth = cases.run_auto(reference, tuple(v.double() for v in views))
    for result, value in ours.items():
        error = float((value.double() - truth[result]).abs().max() / truth[result].abs().max())
        assert error < (1e-12 if result in ("square", "distance") else 1e-3), result
        assert result != "off_diagonal" or error > 1e-6  # it was tf32


def test_tf32_keeps_what_is_not_a_number() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def rounded(x, y, SIZE: tl.constexpr):
        at = tl.arange(0, SIZE)
        tl.store(y + at, kernels._tf32(tl.load(x + at)))

    bits = [0x7FFFFFFF, -1, 0x7FC00000, 0x7F800000, 0x3F801000, 0x3F800FFF, -0x407FF000, 0]
    x = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    y = torch.zeros_like(x)
    rounded[(1,)](x, y, SIZE=8)
    expected = [float("nan")] * 3 + [float("inf"), 1 + 2**-10, 1.0, -1 - 2**-10, 0.0]
    assert torch.equal(y.nan_to_num(-7.0), torch.tensor(expected).nan_to_num(-7.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["rows", "columns", "three positions", "one column", "one view"])
def test_nan_comes_out_as_nan(name: str, value: float) -> None:
    cases.check_auto_nan(covariance, AUTOS[name], value=value)
    if name in CROSSES:
        cases.check_cross_nan(covariance, CROSSES[name], value=value)


def test_nan_beside_a_dominating_column() -> None:
    cases.check_auto_nan(covariance, AUTOS["a position with a column times 1e3"])


@pytest.mark.parametrize("name", ["rows", "columns", "a column times 1e3"])
def test_same_bits_whatever_the_strides(name: str) -> None:
    x, y = cases.inputs(AUTOS[name])
    once, again = (
        cases.run_auto(covariance, views) for views in ((x, y), (cases._layout(x, "rows"), cases._layout(y, "columns")))
    )
    for result, value in once.items():
        assert torch.equal(value, again[result]), result
