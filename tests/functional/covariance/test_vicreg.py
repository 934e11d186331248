from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import VICRegLoss as LightlyVICRegLoss
from pytorch_metric_learning.losses import VICRegLoss as MetricLearningVICRegLoss
from torch import Tensor

from pyssl_fast.functional import VICRegTerms, vicreg
from tests.functional.covariance.cases import SHAPES, views
from tests.functional.similarity.peers import assert_like_peer, value_and_gradients

EVERY_SHAPE = [*SHAPES, (7, 3, 5), (4, 2, 3, 9)]


def papers(z0: Tensor, z1: Tensor, weights: tuple[float, float, float], sum_variance: bool, eps: float) -> Tensor:
    """Both views [N, D], entry by entry; with sum_variance as the paper's eq. 6 and solo-learn have it."""
    n, d = z0.shape
    variance = covariance = z0.new_zeros(())
    for z in (z0, z1):
        c = torch.atleast_2d(z.T.cov())
        variance = variance + F.relu(1 - (c.diagonal() + eps).sqrt()).sum() / d
        covariance = covariance + (c.square().sum() - c.diagonal().square().sum()) / d
    variance = variance if sum_variance else variance / 2
    return weights[0] * (z0 - z1).square().sum() / (n * d) + weights[1] * variance + weights[2] * covariance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", EVERY_SHAPE, ids=str)
def test_value_and_gradients_are_lightlys(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    assert_like_peer(vicreg, LightlyVICRegLoss(), views(*shape), dtype)
    assert_like_peer(
        lambda a, b: vicreg(a, b, 1.0, 3.0, 0.5, eps=0.1), LightlyVICRegLoss(1.0, 3.0, 0.5, eps=0.1), views(*shape)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(1, 30), st.integers(0, 2**31), st.floats(0.01, 10))
def test_in_float64_it_is_lightlys_to_the_last_digits(count: int, dim: int, seed: int, scale: float) -> None:
    inputs = views(count, dim, scale=scale, seed=seed)
    mine = value_and_gradients(vicreg, inputs, torch.float64)
    theirs = value_and_gradients(LightlyVICRegLoss(), inputs, torch.float64)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES[3:], ids=str)
def test_scalings_of_the_authors_and_of_solo_learn(shape: tuple[int, int], backend: str) -> None:
    weights = (25.0, 25.0, 1.0)
    assert_like_peer(vicreg, lambda a, b: papers(a, b, weights, False, 1e-4), views(*shape))
    assert_like_peer(
        lambda a, b: vicreg(a, b, variance="sum"), lambda a, b: papers(a, b, weights, True, 1e-4), views(*shape)
    )


@pytest.mark.parametrize("shape", SHAPES[3:], ids=str)
def test_value_is_pytorch_metric_learnings(shape: tuple[int, int]) -> None:
    z0, z1 = views(*shape)
    theirs = MetricLearningVICRegLoss()(z0, ref_emb=z1)
    torch.testing.assert_close(vicreg(z0, z1), theirs, rtol=1e-5, atol=1e-5)


def test_terms_add_up_and_have_gradients(backend: str) -> None:
    z0, z1 = (x.requires_grad_() for x in views(9, 20))
    loss, terms = vicreg(z0, z1, 2.0, 3.0, 4.0, return_terms=True)
    assert isinstance(terms, VICRegTerms) and torch.equal(loss, vicreg(z0, z1, 2.0, 3.0, 4.0))
    assert all(term.shape == () and term.dtype == torch.float32 for term in terms)
    torch.testing.assert_close(2 * terms.invariance + 3 * terms.variance + 4 * terms.covariance, loss)
    torch.testing.assert_close(terms.invariance, F.mse_loss(z0, z1))
    alone = torch.autograd.grad(terms.covariance, z0)[0]
    torch.testing.assert_close(alone, torch.autograd.grad(vicreg(z0, z1, 0, 0, 1), z0)[0])


def test_one_column_has_no_covariance(backend: str) -> None:
    assert vicreg(*views(9, 1), return_terms=True)[1].covariance == 0


@pytest.mark.parametrize("shape", [(9, 20), (40, 7)], ids=str)
@pytest.mark.parametrize("eps", [1e-4, 1e-30])
def test_constant_columns_have_finite_gradients(shape: tuple[int, int], eps: float, backend: str) -> None:
    z0, z1 = (x.clone() for x in views(*shape))
    z0[:, 1], z1[:, 2] = 0.5, 0.0
    z0.requires_grad_()
    loss, terms = vicreg(z0, z1, eps=eps, return_terms=True)
    assert loss.isfinite()
    (gradient,) = torch.autograd.grad(terms.variance + terms.covariance, z0)
    assert gradient.isfinite().all() and (gradient[:, 1] == 0).all() and (gradient[:, 0] != 0).any()
    everything = vicreg(torch.ones(shape), torch.ones(shape), eps=eps, return_terms=True)[1]
    want = VICRegTerms(torch.tensor(0.0), torch.tensor(1 - math.sqrt(eps)), torch.tensor(0.0))
    torch.testing.assert_close(tuple(everything), tuple(want))


@pytest.mark.parametrize("shape", [(60, 130), (130, 60)], ids=str)
def test_large_embeddings_in_bfloat16(shape: tuple[int, int], backend: str) -> None:
    inputs = views(*shape, scale=1e3)
    assert_like_peer(vicreg, LightlyVICRegLoss(), inputs, torch.bfloat16)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_symmetry_order_and_shift(count: int, dim: int, seed: int) -> None:
    z0, z1 = views(count, dim, seed=seed)
    loss = vicreg(z0, z1)
    assert loss >= 0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    columns = torch.randperm(dim, generator=torch.Generator().manual_seed(seed))
    for same in ((z1, z0), (z0[order], z1[order]), (z0[:, columns], z1[:, columns]), (z0 + 3, z1 + 3)):
        torch.testing.assert_close(vicreg(*same), loss, rtol=1e-4, atol=1e-4)


Z = torch.randn(4, 3)
BAD = {
    "no tensor": (([1.0], Z), {}, TypeError, r"z0 must be a Tensor \[N, …, D\]; got list"),
    "integers": ((Z.long(), Z), {}, TypeError, "z0 must be float32, float16, bfloat16 or float64; got torch.int64"),
    "one dimension": ((Z[0], Z[0]), {}, ValueError, r"z0 must have shape \[N, …, D\]; got \[3\]"),
    "empty": ((Z[:, :0], Z[:, :0]), {}, ValueError, r"z0 must not be empty; got shape \[4, 0\]"),
    "no positions": ((Z[:, None][:, :0], Z[:, None][:, :0]), {}, ValueError, "z0 must not be empty"),
    "shapes": ((Z, Z[:3]), {}, ValueError, r"z1 must have z0's shape \[4, 3\]; got \[3, 3\]"),
    "dtypes": ((Z, Z.double()), {}, TypeError, "z1 must have z0's dtype torch.float32; got torch.float64"),
    "devices": ((Z, Z.to("meta")), {}, ValueError, "z1 must be on z0's device cpu; got meta"),
    "one row": ((Z[:1], Z[:1]), {}, ValueError, r"z0 must have two rows or more; got shape \[1, 3\]"),
    "lambda": ((Z, Z, -1.0), {}, ValueError, "lambda_param must be 0 to 1e\\+30; got -1"),
    "mu NaN": ((Z, Z, 1, math.nan), {}, ValueError, "mu_param must be"),
    "nu text": ((Z, Z, 1, 1, "1"), {}, TypeError, "nu_param must be a number or a Tensor; got str"),
    "nu Tensor": ((Z, Z, 1, 1, torch.tensor(1.0)), {}, TypeError, "nu_param must be a number; got Tensor"),
    "eps 0": ((Z, Z), {"eps": 0}, ValueError, "eps must be .* got 0"),
    "variance": ((Z, Z), {"variance": "solo"}, ValueError, "variance must be one of mean, sum; got 'solo'"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, options, error, message = case
    with pytest.raises(error, match=message):
        vicreg(*arguments, **options)
