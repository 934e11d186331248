from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyssl_fast.functional import spectral_contrastive
from pyssl_fast.functional.similarity import spectral
from tests.functional.similarity.peers import assert_like_peer, rows


def eager(a: torch.Tensor, b: torch.Tensor, mu: float = 1.0) -> torch.Tensor:
    """The paper's loss with its authors' clipping, every pair by itself."""
    a, b = (x * (mu**0.5 / x.norm(dim=1, keepdim=True)).clamp_max(1) for x in (a, b))
    s = a @ b.T
    n = len(s)
    return (-2 * s.diagonal().mean() + (s.square().sum() - s.diagonal().square().sum()) / (n * (n - 1))) / mu


# On both sides of the switch, rows = 2·columns.
SHAPES = [(2, 1), (3, 1), (9, 20), (40, 20), (41, 20), (90, 7)]


@pytest.mark.parametrize("mu", [1.0, 1e-4, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_are_the_papers(shape: tuple[int, int], mu: float) -> None:
    inputs = (0.5 * rows(*shape), 0.5 * rows(*shape, seed=1))
    assert_like_peer(lambda a, b: spectral_contrastive(a, b, mu), lambda a, b: eager(a, b, mu), inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_huge_row_is_shortened(shape: tuple[int, int]) -> None:
    a, b = 0.1 * rows(*shape), 0.1 * rows(*shape, seed=1)
    huge = a.clone()
    huge[0] *= 1e30 / huge[0].norm()
    unit = a.clone()
    unit[0] /= unit[0].norm()
    torch.testing.assert_close(spectral_contrastive(huge, b), spectral_contrastive(unit, b), rtol=1e-6, atol=1e-7)
    for size in (1e4, 1e18):
        assert_like_peer(spectral_contrastive, eager, (torch.cat((a[:1] * size, a[1:])), b), what=f"×{size}")


def test_both_sides_agree_and_keep_the_squares_of_small_rows() -> None:
    """One pair of length 1 beside lengths of 1e-4: a float32 total less its diagonal has no digit of the rest left."""
    u, v = torch.eye(64, 8) + 1e-4 * rows(64, 8), torch.eye(64, 8) + 1e-4 * rows(64, 8, 1)
    u[1:], v[1:] = 1e-4 * rows(63, 8, 2), 1e-4 * rows(63, 8, 3)
    own = (u.double() * v.double()).sum(1)
    s = (u.double() @ v.double().T).fill_diagonal_(0)
    want = s.square().sum()
    torch.testing.assert_close(spectral._squares_by_grams(u, v, own), want, rtol=1e-8, atol=0)
    torch.testing.assert_close(spectral._squares_by_pairs(u, v), want, rtol=1e-6, atol=0)
    single = ((u.T @ u) * (v.T @ v)).sum() - own.float().square().sum()
    assert (single - want).abs() > 0.01 * want


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_half_precision(shape: tuple[int, int], dtype: torch.dtype) -> None:
    assert_like_peer(spectral_contrastive, eager, (0.4 * rows(*shape), 0.4 * rows(*shape, seed=1)), dtype)


def test_rows_of_zeros_have_a_gradient() -> None:
    for shape in ((6, 20), (60, 4)):
        a, b = rows(*shape), rows(*shape, seed=1)
        a[1] = 0
        a.requires_grad_()
        spectral_contrastive(a, b).backward()
        assert a.grad.isfinite().all() and (a.grad[1] != 0).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(1, 10), st.integers(0, 2**31), st.floats(0.01, 10))
def test_symmetry_order_and_bound(count: int, dim: int, seed: int, mu: float) -> None:
    a, b = rows(count, dim, seed), rows(count, dim, seed + 1)
    loss = spectral_contrastive(a, b, mu)
    assert -2.001 <= loss <= 2.001 + mu * 1.001
    torch.testing.assert_close(spectral_contrastive(b, a, mu), loss, rtol=1e-5, atol=1e-5)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(spectral_contrastive(a[order], b[order], mu), loss, rtol=1e-5, atol=1e-5)


Z = torch.randn(4, 3)
BAD = {
    "no tensor": (([1.0], Z), TypeError, r"z0 must be a Tensor \[N, D\]; got list"),
    "shapes": ((Z, Z[:3]), ValueError, r"z1 must have z0's shape \[4, 3\]; got \[3, 3\]"),
    "dtypes": ((Z, Z.double()), TypeError, "z1 must have z0's dtype torch.float32"),
    "one row": ((Z[:1], Z[:1]), ValueError, r"z0 must have two rows or more; got shape \[1, 3\]"),
    "mu 0": ((Z, Z, 0.0), ValueError, "mu must be"),
    "mu NaN": ((Z, Z, float("nan")), ValueError, "mu must be"),
    "mu text": ((Z, Z, "1"), TypeError, "mu must be a number"),
    "mu Tensor": ((Z, Z, torch.tensor(1.0)), TypeError, "mu must be a number; got Tensor"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, error, message = case
    with pytest.raises(error, match=message):
        spectral_contrastive(*arguments)
