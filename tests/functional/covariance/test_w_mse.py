from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import WMSELoss as LightlyWMSELoss
from lightly.loss.wmse_loss import Whitening2d as LightlyWhitening2d
from lightly.loss.wmse_loss import norm_mse_loss as lightlys_norm_mse_loss
from torch import Tensor

from pyssl_fast.functional import norm_mse_loss, w_mse, whiten
from tests.functional.covariance.cases import views
from tests.functional.similarity.peers import assert_like_peer


def seeded(loss, *arguments, **keywords):
    """As a function of one Tensor whose permutations are the same at every call."""

    def call(z: Tensor) -> Tensor:
        torch.manual_seed(7)
        return loss(z, *arguments, **keywords)

    return call


def batch(samples: int, dim: int, count: int = 2, seed: int = 0) -> Tensor:
    return torch.cat(views(samples, dim, count=count, seed=seed))


# (B, D, w_size, w_iter, views): one sub-batch, several, several deals, three views, one column.
CASES = [(16, 8, 16, 1, 2), (30, 5, 10, 1, 2), (24, 3, 8, 3, 2), (20, 4, 10, 2, 3), (6, 1, 3, 1, 2)]


@pytest.mark.parametrize(("samples", "dim", "w_size", "w_iter", "count"), CASES)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_value_and_gradients_are_lightlys(samples, dim, w_size, w_iter, count, eps) -> None:
    def lightlys(z: Tensor) -> Tensor:
        loss = LightlyWMSELoss(dim, eps=eps, w_iter=w_iter, w_size=w_size, num_samples=count).to(z.dtype)
        return loss(z)

    ours = seeded(w_mse, count, w_size, w_iter, eps)
    assert_like_peer(ours, seeded(lightlys), (batch(samples, dim, count),))


def test_it_draws_as_many_numbers_as_lightly() -> None:
    z, states = batch(24, 3), []
    for loss in (lambda z: w_mse(z, w_size=8, w_iter=2), LightlyWMSELoss(3, w_iter=2, w_size=8)):
        seeded(loss)(z)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    def in_float32(z: Tensor) -> Tensor:
        wide = torch.promote_types(z.dtype, torch.float32)
        return LightlyWMSELoss(8, w_size=16).to(wide)(z.to(wide))

    assert_like_peer(seeded(w_mse, w_size=16), seeded(in_float32), (batch(32, 8),), dtype)


def test_the_loss_of_ones_own_sees_rows_in_their_order() -> None:
    z = batch(30, 5, 3)
    weight = torch.rand(30)

    def weighted(x0: Tensor, x1: Tensor) -> Tensor:
        return (weight * (x0 - x1).square().sum(1)).sum()

    ours = seeded(w_mse, 3, 10, 2, loss_fn=weighted)(z)
    theirs = seeded(LightlyWMSELoss(5, w_iter=2, w_size=10, num_samples=3, loss_fn=weighted))(z)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_norm_mse_is_lightlys() -> None:
    for scale in (1.0, 1e-3, 1e3):
        assert_like_peer(norm_mse_loss, lightlys_norm_mse_loss, views(9, 5, scale=scale))
    with pytest.raises(ValueError, match=r"x1 must have x0's shape \[4, 3\]; got \[3, 3\]"):
        norm_mse_loss(torch.ones(4, 3), torch.ones(3, 3))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 2**31), st.floats(0.01, 100))
def test_whitened_rows_have_covariance_one(dim: int, groups: int, seed: int, scale: float) -> None:
    x = views(groups, 3 * dim + 2, dim, count=1, seed=seed)[0].double() * scale
    white, mean, covariance = whiten(x)
    torch.testing.assert_close(mean, x.mean(1))
    for own, group, c in zip(white, x, covariance, strict=True):
        torch.testing.assert_close(torch.atleast_2d(own.T.cov()), torch.eye(dim, dtype=x.dtype), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.atleast_2d(group.T.cov()), c)
        theirs = LightlyWhitening2d(dim).double()(group)
        torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-6)


def test_statistics_stay_in_float32_under_autocast() -> None:
    x = views(2, 40, 12, count=1)[0]
    want = whiten(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours = whiten(x)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(ours, want, strict=True))


def test_a_singular_covariance_is_named() -> None:
    x = views(3, 20, 5, count=1)[0].clone()
    x[2, :, 3] = 0.25
    with pytest.raises(ValueError, match=r"group 2 must be .* its first 4 columns .* or the last of them is constant"):
        whiten(x)
    assert whiten(x, 0.1).x.isfinite().all()


def test_where_values_are_not_read_a_singular_covariance_is_not_a_number() -> None:
    x = views(3, 20, 5, count=1)[0].clone()
    x[2, :, 3] = 0.25
    x.requires_grad_()
    white = torch.compile(lambda x: whiten(x).x, fullgraph=True, dynamic=True, backend="aot_eager")(x)
    white.sum().backward()
    assert white[:2].isfinite().all() and white[2].isnan().all()
    assert x.grad[:2].isfinite().all() and x.grad[2].isnan().all()


def test_not_a_number_stays_in_its_group() -> None:
    x = views(3, 20, 5, count=1)[0].clone()
    x[1, 4, 2] = torch.nan
    white = whiten(x).x
    assert white[::2].isfinite().all() and white[1].isnan().all()


Z = torch.randn(8, 3)
BAD = {
    "no tensor": (([1.0],), TypeError, r"z must be a Tensor \[num_samples·B, D\]; got list"),
    "three dimensions": ((Z[None],), ValueError, r"z must have shape \[num_samples·B, D\]; got \[1, 8, 3\]"),
    "integers": ((Z.long(),), TypeError, "z must be float32"),
    "an odd view": ((Z, 3), ValueError, r"z must have num_samples=3 times as many rows as images; got \[8, 3\]"),
    "one view": ((Z, 1), ValueError, "num_samples must be 2 or more; got 1"),
    "too few": ((Z, 2, 8), ValueError, "w_size=8 must divide the number of images, 4, into whole sub-batches"),
    "a rest": ((Z, 2, 3), ValueError, "w_size=3 must divide the number of images, 4, into whole sub-batches"),
    "D": ((torch.randn(8, 4), 2, 4), ValueError, "w_size must be more than D = 4, or eps more than 0; got 4"),
    "w_size": ((Z, 2, 4.0), TypeError, "w_size must be a whole number; got float"),
    "w_iter": ((Z, 2, 4, 0), ValueError, "w_iter must be 1 or more; got 0"),
    "eps": ((Z, 2, 4, 1, -0.1), ValueError, r"eps must be 0 to 1; got -0\.1"),
    "eps NaN": ((Z, 2, 4, 1, math.nan), ValueError, "eps must be 0 to 1"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, error, message = case
    with pytest.raises(error, match=message):
        w_mse(*arguments)


@pytest.mark.parametrize(
    ("x", "eps", "message"),
    [
        (torch.ones(8, 3), 0.0, r"x must have shape \[G, N, D\]; got \[8, 3\]"),
        (torch.ones(1, 3, 3), 0.0, r"x must have more than D rows in a group"),
        (torch.ones(1, 1, 3), 0.1, r"x must have two rows or more in a group"),
    ],
)
def test_bad_groups_are_named(x: Tensor, eps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whiten(x, eps)
