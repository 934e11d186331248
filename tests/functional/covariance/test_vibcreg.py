from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyssl_fast
from pyssl_fast.functional import VICRegTerms, vibcreg, vicreg
from tests.functional.covariance.cases import SHAPES, views
from tests.functional.similarity.peers import assert_like_peer, value_and_gradients


def solo_learns(z0: Tensor, z1: Tensor, weights: tuple[float, float, float] = (25.0, 25.0, 200.0)) -> Tensor:
    """As solo-learn defines it, every product of columns by itself."""
    variance = covariance = z0.new_zeros(())
    for z in (z0, z1):
        variance = variance + F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        a = F.normalize(z - z.mean(0), dim=0)
        r = a.T @ a
        covariance = covariance + (r - torch.diag(r.diagonal())).square().mean()
    return weights[0] * F.mse_loss(z0, z1) + weights[1] * variance + weights[2] * covariance


# Two samples normalise to ±1/√2 whatever they are: the gradient of their products is rounding.
GRADED = [shape for shape in SHAPES if shape[0] > 2]


@pytest.mark.parametrize("shape", GRADED, ids=str)
def test_value_and_gradients_are_solo_learns(shape: tuple[int, int], backend: str) -> None:
    assert_like_peer(vibcreg, solo_learns, views(*shape))
    weights = (1.0, 3.0, 40.0)
    assert_like_peer(lambda a, b: vibcreg(a, b, *weights), lambda a, b: solo_learns(a, b, weights), views(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", GRADED, ids=str)
def test_half_precision(shape: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    def twin(z0: Tensor, z1: Tensor) -> Tensor:
        with pyssl_fast.use_backend("reference"):
            return vibcreg(z0, z1)

    assert_like_peer(vibcreg, solo_learns, views(*shape), dtype, eager=twin)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 40), st.integers(1, 30), st.integers(0, 2**31), st.floats(0.1, 10))
def test_in_float64_it_is_solo_learns_to_the_last_digits(count: int, dim: int, seed: int, scale: float) -> None:
    inputs = views(count, dim, scale=scale, seed=seed)
    mine = value_and_gradients(vibcreg, inputs, torch.float64)
    theirs = value_and_gradients(solo_learns, inputs, torch.float64)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_terms_add_up_and_two_are_vicregs(backend: str) -> None:
    z0, z1 = views(9, 20)
    loss, terms = vibcreg(z0, z1, 2.0, 3.0, 4.0, return_terms=True)
    assert isinstance(terms, VICRegTerms) and torch.equal(loss, vibcreg(z0, z1, 2.0, 3.0, 4.0))
    torch.testing.assert_close(2 * terms.invariance + 3 * terms.variance + 4 * terms.covariance, loss)
    other = vicreg(z0, z1, variance="sum", return_terms=True)[1]
    torch.testing.assert_close(terms[:2], other[:2])
    # The covariance is that of standardised columns, but for the factors.
    z0, z1 = ((z - z.mean(0)) / z.std(0) for z in (z0, z1))
    torch.testing.assert_close(terms.covariance, vicreg(z0, z1, return_terms=True)[1].covariance / 20)


def test_columns_of_any_length_count_alike(backend: str) -> None:
    z0, z1 = views(9, 20)
    want = vibcreg(z0, z1, 0, 0, 1)
    scale = torch.logspace(-8, 8, 20)
    torch.testing.assert_close(vibcreg(z0 * scale, z1 * scale, 0, 0, 1), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 20), (40, 7)], ids=str)
def test_constant_columns_have_finite_gradients(shape: tuple[int, int], backend: str) -> None:
    z0, z1 = (x.clone() for x in views(*shape))
    z0[:, 1], z1[:, 2] = 0.5, 0.0
    z0.requires_grad_()
    loss = vibcreg(z0, z1)
    loss.backward()
    assert loss.isfinite() and z0.grad.isfinite().all()
    same = torch.ones(shape, requires_grad=True)
    loss = vibcreg(same, same, 0.0, 1.0, 1.0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(2 - 2 * math.sqrt(1e-4)))
    assert (same.grad == 0).all()


Z = torch.randn(4, 3)
BAD = {
    "no tensor": (([1.0], Z), {}, TypeError, r"z0 must be a Tensor \[N, D\]; got list"),
    "positions": ((Z[:, None], Z[:, None]), {}, ValueError, r"z0 must have shape \[N, D\]; got \[4, 1, 3\]"),
    "shapes": ((Z, Z[:3]), {}, ValueError, r"z1 must have z0's shape \[4, 3\]; got \[3, 3\]"),
    "dtypes": ((Z, Z.double()), {}, TypeError, r"z1 must have z0's dtype torch\.float32; got torch\.float64"),
    "one row": ((Z[:1], Z[:1]), {}, ValueError, r"z0 must have two rows or more; got shape \[1, 3\]"),
    "weights": ((Z, Z, 1, -1.0), {}, ValueError, "var_loss_weight must be .* got -1"),
    "weight text": ((Z, Z, 1, 1, "1"), {}, TypeError, "cov_loss_weight must be a number or a Tensor; got str"),
    "eps 0": ((Z, Z), {"eps": 0}, ValueError, "eps must be .* got 0"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, options, error, message = case
    with pytest.raises(error, match=message):
        vibcreg(*arguments, **options)
