"""The watch for collapse against matrices whose answer is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyssl_fast import use_backend
from pyssl_fast.evaluation import decorrelation
from pyssl_fast.evaluation.collapse import effective_rank, measure_spread

NOISE = 8 * torch.finfo(torch.float64).eps


def rank_of(matrix):
    """From either of its Gram matrices."""
    matrix = matrix.double()
    ranks = [effective_rank(gram, NOISE) for gram in (matrix.T @ matrix, matrix @ matrix.T)]
    assert ranks[0] == pytest.approx(ranks[1], rel=1e-9, nan_ok=True)
    return ranks[0]


def rank_by_svd(matrix):
    values = torch.linalg.svdvals(matrix.double() - matrix.double().mean(0))
    return torch.special.entr(values / values.sum()).sum().exp().item()


def spectrum(samples, dim, slope):
    """A matrix with singular values that fall by slope powers of ten."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(samples, dim, dtype=torch.float64), full_matrices=False)
    return left * torch.logspace(0, -slope, min(samples, dim), dtype=torch.float64) @ right


@given(st.integers(1, 8), st.integers(0, 4), st.floats(1e-3, 1e3))
def test_rank_of_equal_singular_values_is_their_number(rank, zeros, scale):
    matrix = torch.zeros(rank + zeros + 2, rank + zeros)
    matrix[:rank, :rank] = torch.eye(rank) * scale
    assert rank_of(matrix) == pytest.approx(rank, rel=1e-9)


def test_rank_by_hand():
    # singular values 3 and 1: shares 3/4 and 1/4
    expected = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert rank_of(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected, rel=1e-12)
    assert rank_of(torch.outer(torch.arange(1.0, 5), torch.ones(3))) == pytest.approx(1, abs=1e-6)
    assert rank_of(torch.zeros(4, 3)) == 0
    assert math.isnan(rank_of(torch.full((2, 2), float("nan"))))


@pytest.mark.parametrize(("samples", "dim"), [(200, 33), (33, 200), (2, 5), (64, 64)])
@pytest.mark.parametrize(("dtype", "slope", "rel"), [(torch.float64, 6, 1e-6), (torch.float32, 2, 1e-4)])
def test_rank_is_that_of_the_singular_values(samples, dim, dtype, slope, rel):
    matrix = (spectrum(samples, dim, slope) + 0.3).to(dtype)
    assert decorrelation(matrix).effective_rank == pytest.approx(rank_by_svd(matrix), rel=rel)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_directions_that_are_not_there_add_no_rank(dtype):
    torch.manual_seed(0)
    matrix = torch.randn(300, 3, dtype=torch.float64) @ torch.randn(3, 128, dtype=torch.float64)
    assert decorrelation(matrix.to(dtype)).effective_rank == pytest.approx(rank_by_svd(matrix), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("samples", "dim"), [(50, 7), (7, 50)])
def test_correlation_and_deviation_are_torchs(samples, dim, dtype):
    torch.manual_seed(0)
    x = (torch.randn(samples, dim) @ torch.randn(dim, dim) + 2).to(dtype)
    found = decorrelation(x.T.contiguous().T)
    pairs = torch.corrcoef(x.double().T)[~torch.eye(dim, dtype=torch.bool)]
    assert found.mean_abs_correlation == pytest.approx(pairs.abs().mean().item(), rel=1e-5)
    assert found.std.dtype == torch.float64
    torch.testing.assert_close(found.std, x.double().std(0, correction=0), rtol=1e-5, atol=0)


def test_dimensions_that_say_the_same_or_nothing():
    torch.manual_seed(0)
    x = torch.randn(100, 1, dtype=torch.float64)
    rank, correlation, std = decorrelation(torch.cat([x, -2 * x, torch.ones_like(x)], dim=1))
    assert rank == pytest.approx(1)
    assert correlation == pytest.approx(1 / 3)  # one pair of three
    assert std[2] == 0
    assert decorrelation(x).mean_abs_correlation == 0
    assert decorrelation(torch.ones(4, 3))[:2] == (0, 0)


def test_decorrelation_is_watched_not_trained_and_the_same_under_autocast():
    x = torch.randn(20, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = decorrelation(x)
    assert not inside.std.requires_grad
    assert inside[:2] == decorrelation(x)[:2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_comes_out_as_none(bad):
    x = torch.randn(20, 4)
    x[3, 1] = bad
    rank, correlation, std = decorrelation(x)
    assert math.isnan(rank)
    assert math.isnan(correlation)
    assert std.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "embeddings must be a Tensor"),
        (torch.ones(3, 2, dtype=torch.int64), TypeError, "embeddings must be float32"),
        (torch.ones(3), ValueError, r"embeddings must have shape \[N, D\]"),
        (torch.ones(3, 0), ValueError, "embeddings must not be empty"),
        (torch.ones(1, 3), ValueError, "embeddings must have two rows or more"),
    ],
)
def test_bad_embeddings_are_named(x, error, message):
    with pytest.raises(error, match=message):
        decorrelation(x)


def test_spread_by_hand():
    # unit vectors ±e1, ±e2, of whatever length before: each dimension has mean 0 and variance 1/2
    points = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [0.0, 5.0], [0.0, -2.0]])
    spread = measure_spread(points)
    assert spread.spread == pytest.approx(1)
    assert spread.rank == pytest.approx(2)
    assert spread.correlation == pytest.approx(0, abs=1e-12)
    assert spread.dim == 2
    assert not spread.collapsed


@pytest.mark.parametrize(
    "embeddings",
    [
        torch.ones(10, 4),  # all equal
        torch.zeros(10, 4),
        torch.outer(torch.linspace(-1, 1, 10), torch.ones(4)),  # two points
        torch.full((10, 4), float("nan")),
    ],
)
def test_collapse_is_seen(embeddings):
    assert measure_spread(embeddings).collapsed


def test_even_embeddings_have_spread_one():
    torch.manual_seed(0)
    spread = measure_spread(torch.randn(2000, 32))
    assert spread.spread == pytest.approx(1, abs=0.01)
    assert 31 < spread.rank <= 32
    assert spread.correlation == pytest.approx((2 / math.pi / 2000) ** 0.5, rel=0.1)


def test_the_backend_of_the_losses_does_not_matter_to_the_watch():
    torch.manual_seed(0)
    embeddings = torch.randn(20, 4)
    expected = measure_spread(embeddings)
    with use_backend("cpu"):  # has no kernels for float64
        assert measure_spread(embeddings) == expected
