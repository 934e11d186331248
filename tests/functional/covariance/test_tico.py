from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import TiCoLoss as LightlyTiCoLoss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyssl_fast.functional import tico
from tests.functional.covariance.cases import SHAPES, second_moment, views
from tests.functional.similarity.peers import assert_like_peer


def lightlys(z0: Tensor, z1: Tensor, beta: float, rho: float, covariance: Tensor | None = None) -> Tensor:
    loss = LightlyTiCoLoss(beta, rho)
    loss.C = None if covariance is None else covariance.to(z0.dtype)
    return loss(z0, z1)


# A row of one number has length 1 whatever it is: its gradient is 0, but for rounding.
GRADED = [shape for shape in SHAPES if shape[1] > 1]


@pytest.mark.parametrize(("beta", "rho"), [(0.9, 8.0), (0.0, 1.0), (1.0, 20.0)])
@pytest.mark.parametrize("shape", GRADED, ids=str)
def test_value_and_gradients_are_lightlys(shape: tuple[int, int], beta: float, rho: float) -> None:
    inputs = views(*shape)
    assert_like_peer(lambda a, b: tico(a, b, None, beta, rho)[0], lambda a, b: lightlys(a, b, beta, rho), inputs)
    before = second_moment(inputs[0])
    assert_like_peer(
        lambda a, b: tico(a, b, before, beta, rho)[0], lambda a, b: lightlys(a, b, beta, rho, before), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", GRADED, ids=str)
def test_half_precision(shape: tuple[int, int], dtype: torch.dtype) -> None:
    def plain(z0: Tensor, z1: Tensor) -> Tensor:
        wide = torch.promote_types(z0.dtype, torch.float32)
        return lightlys(z0.to(wide), z1.to(wide), 0.9, 8.0)

    assert_like_peer(lambda a, b: tico(a, b)[0], plain, views(*shape), dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(1, 20), st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 20))
def test_the_moments_move_as_lightlys(count: int, dim: int, seed: int, beta: float, rho: float) -> None:
    theirs, c = LightlyTiCoLoss(beta, rho), None
    for batch in range(3):
        z0, z1 = (x.double() for x in views(count, dim, seed=seed + batch))
        loss, c = tico(z0, z1, c, beta, rho)
        torch.testing.assert_close(loss, theirs(z0, z1), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(c, theirs.C, rtol=1e-10, atol=1e-12)


def test_one_column() -> None:
    z0, z1 = (x.requires_grad_() for x in views(5, 1))
    loss, c = tico(z0, z1, None, 0.0, 2.0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), 3 - (z0 * z1).sign().mean().detach())
    torch.testing.assert_close(c, torch.ones(1, 1))
    assert (z0.grad.abs() < 1e-5).all()


class Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return function(*arguments, **(keywords or {}))


def test_two_products_in_all() -> None:
    z0, z1 = (x.requires_grad_() for x in views(9, 20))
    with Products() as products:
        tico(z0, z1)[0].backward()
    assert products.count == 2


def test_covariance_is_symmetric_without_gradient_and_of_trace_one() -> None:
    z0, z1 = (x.requires_grad_() for x in views(9, 20))
    _, c = tico(z0, z1, None, 0.0)
    assert not c.requires_grad
    torch.testing.assert_close(c, F.normalize(z0.detach()).T @ F.normalize(z0.detach()) / 9)
    torch.testing.assert_close(c.trace(), torch.tensor(1.0))


def test_what_is_given_is_not_written() -> None:
    before = torch.eye(20)
    tico(*views(9, 20), before)
    assert torch.equal(before, torch.eye(20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_statistics_stay_in_float32_under_autocast(dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in views(40, 20)]
    loss, c = tico(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        same, same_c = tico(*inputs)
    assert torch.equal(loss, same) and torch.equal(c, same_c) and c.dtype == loss.dtype == torch.float32


def test_rows_of_zeros_have_a_finite_gradient() -> None:
    z0, z1 = (x.clone() for x in views(9, 20))
    z0[1], z1[2] = 0, 0
    z0.requires_grad_()
    tico(z0, z1)[0].backward()
    assert z0.grad.isfinite().all()


Z = torch.randn(4, 3)
BAD = {
    "no tensor": (([1.0], Z), TypeError, r"z0 must be a Tensor \[N, D\]; got list"),
    "shapes": ((Z, Z[:3]), ValueError, r"z1 must have z0's shape \[4, 3\]; got \[3, 3\]"),
    "dtypes": ((Z, Z.double()), TypeError, r"z1 must have z0's dtype torch\.float32; got torch\.float64"),
    "one row": ((Z[:1], Z[:1]), ValueError, r"z0 must have two rows or more; got shape \[1, 3\]"),
    "covariance": ((Z, Z, torch.eye(4)), ValueError, r"covariance must have shape \[3, 3\]; got \[4, 4\]"),
    "covariance's device": ((Z, Z, torch.eye(3).to("meta")), ValueError, "covariance must be on z0's device cpu"),
    "integers": ((Z, Z, torch.eye(3).long()), TypeError, r"covariance must be a floating-point Tensor \[3, 3\]; got"),
    "a list": ((Z, Z, [1.0]), TypeError, r"covariance must be a floating-point Tensor \[3, 3\]; got list"),
    "beta": ((Z, Z, None, 1.5), ValueError, r"beta must be 0 to 1; got 1\.5"),
    "beta NaN": ((Z, Z, None, math.nan), ValueError, "beta must be 0 to 1"),
    "rho": ((Z, Z, None, 0.5, -1), ValueError, "rho must be .* got -1"),
    "rho text": ((Z, Z, None, 0.5, "8"), TypeError, "rho must be a number or a Tensor; got str"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, error, message = case
    with pytest.raises(error, match=message):
        tico(*arguments)
