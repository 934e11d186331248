from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import BarlowTwinsLoss as LightlyBarlowTwinsLoss
from torch import Tensor, nn

import pyssl_fast
from pyssl_fast.functional import BarlowTwinsTerms, barlow_twins
from tests.functional.covariance.cases import SHAPES, views
from tests.functional.similarity.peers import assert_like_peer, value_and_gradients


def authors(z0: Tensor, z1: Tensor, lambd: float = 0.0051, scale: float = 0.024) -> Tensor:
    """The authors' algorithm 1 with the factors of their code."""
    norm = nn.BatchNorm1d(z0.shape[1], affine=False, dtype=z0.dtype)
    c = norm(z0).T @ norm(z1) / len(z0)
    on = (c.diagonal() - 1).square().sum()
    off = (c - torch.diag(c.diagonal())).square().sum()
    return scale * (on + lambd * off)


# Two samples normalise to ±1 whatever they are: their gradient is what eps leaves of it, some last digits.
GRADED = [shape for shape in SHAPES if shape[0] > 2]


@pytest.mark.parametrize("shape", [shape for shape in GRADED if shape[1] > 1], ids=str)  # lightly needs two columns
def test_value_and_gradients_are_lightlys(shape: tuple[int, int], backend: str) -> None:
    assert_like_peer(barlow_twins, LightlyBarlowTwinsLoss(), views(*shape))
    assert_like_peer(lambda a, b: barlow_twins(a, b, 0.3), LightlyBarlowTwinsLoss(0.3), views(*shape))


@pytest.mark.parametrize("shape", GRADED, ids=str)
def test_factors_of_the_authors(shape: tuple[int, int], backend: str) -> None:
    assert_like_peer(lambda a, b: barlow_twins(a, b, 0.0051, scale_loss=0.024), authors, views(*shape))


def test_two_samples(backend: str) -> None:
    z0, z1 = views(2, 5)
    torch.testing.assert_close(barlow_twins(z0, z1), LightlyBarlowTwinsLoss()(z0, z1), rtol=1e-5, atol=1e-5)


def twin(z0: Tensor, z1: Tensor) -> Tensor:
    with pyssl_fast.use_backend("reference"):
        return barlow_twins(z0, z1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", GRADED, ids=str)
def test_half_precision(shape: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    """Beside the twin's error: the peers' batch normalisation rounds once, where plain operations round each time."""
    assert_like_peer(barlow_twins, lambda a, b: authors(a, b, 5e-3, 1.0), views(*shape), dtype, eager=twin)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 40), st.integers(2, 30), st.integers(0, 2**31), st.floats(0.1, 10))
def test_in_float64_it_is_lightlys_to_the_last_digits(count: int, dim: int, seed: int, scale: float) -> None:
    inputs = views(count, dim, scale=scale, seed=seed)
    mine = value_and_gradients(barlow_twins, inputs, torch.float64)
    theirs = value_and_gradients(LightlyBarlowTwinsLoss(), inputs, torch.float64)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_terms_add_up_and_have_gradients(backend: str) -> None:
    z0, z1 = (x.requires_grad_() for x in views(9, 20))
    loss, terms = barlow_twins(z0, z1, 0.2, scale_loss=0.5, return_terms=True)
    assert isinstance(terms, BarlowTwinsTerms) and torch.equal(loss, barlow_twins(z0, z1, 0.2, scale_loss=0.5))
    assert all(term.shape == () and term.dtype == torch.float32 for term in terms)
    torch.testing.assert_close(0.5 * (terms.invariance + 0.2 * terms.redundancy), loss)
    assert (torch.autograd.grad(terms.redundancy, z1)[0] != 0).any()


def test_one_column_has_no_redundancy(backend: str) -> None:
    assert barlow_twins(*views(9, 1), return_terms=True)[1].redundancy == 0


@pytest.mark.parametrize("shape", [(9, 20), (40, 7)], ids=str)
def test_constant_columns_correlate_with_none(shape: tuple[int, int], backend: str) -> None:
    z0, z1 = (x.clone() for x in views(*shape))
    z0[:, 1], z1[:, 2] = 0.5, 0.0
    z0.requires_grad_()
    loss = barlow_twins(z0, z1)
    loss.backward()
    assert loss.isfinite() and z0.grad.isfinite().all()
    same = torch.ones(shape)
    loss, terms = barlow_twins(same, same, return_terms=True)
    assert loss == terms.invariance == shape[1] and terms.redundancy == 0


@pytest.mark.parametrize("shape", [(60, 130), (130, 60)], ids=str)
def test_large_embeddings_in_bfloat16(shape: tuple[int, int], backend: str) -> None:
    assert_like_peer(barlow_twins, LightlyBarlowTwinsLoss(), views(*shape, scale=1e3), torch.bfloat16)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_symmetry_order_and_scale(count: int, dim: int, seed: int) -> None:
    z0, z1 = views(count, dim, seed=seed, scale=10)
    loss = barlow_twins(z0, z1)
    assert loss >= 0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    for same in ((z1, z0), (z0[order], z1[order]), (-z0, -z1), (z0 + 3, z1 - 3)):
        torch.testing.assert_close(barlow_twins(*same), loss, rtol=1e-3, atol=1e-3)


Z = torch.randn(4, 3)
BAD = {
    "no tensor": (([1.0], Z), {}, TypeError, r"z0 must be a Tensor \[N, D\]; got list"),
    "three dimensions": ((Z[:, None], Z[:, None]), {}, ValueError, r"z0 must have shape \[N, D\]; got \[4, 1, 3\]"),
    "empty": ((Z[:, :0], Z[:, :0]), {}, ValueError, r"z0 must not be empty; got shape \[4, 0\]"),
    "shapes": ((Z, Z[:3]), {}, ValueError, r"z1 must have z0's shape \[4, 3\]; got \[3, 3\]"),
    "dtypes": ((Z, Z.double()), {}, TypeError, "z1 must have z0's dtype torch.float32; got torch.float64"),
    "devices": ((Z, Z.to("meta")), {}, ValueError, "z1 must be on z0's device cpu; got meta"),
    "one row": ((Z[:1], Z[:1]), {}, ValueError, r"z0 must have two rows or more; got shape \[1, 3\]"),
    "lambda": ((Z, Z, -1.0), {}, ValueError, "lambda_param must be 0 to 1e\\+30; got -1"),
    "lambda Tensor": ((Z, Z, torch.tensor(1.0)), {}, TypeError, "lambda_param must be a number; got Tensor"),
    "eps NaN": ((Z, Z), {"eps": math.nan}, ValueError, "eps must be"),
    "scale 0": ((Z, Z), {"scale_loss": 0}, ValueError, "scale_loss must be .* got 0"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, options, error, message = case
    with pytest.raises(error, match=message):
        barlow_twins(*arguments, **options)
