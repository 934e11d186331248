"""The watch for collapse against matrices whose answer is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyssl_fast.evaluation.collapse import effective_rank, measure_spread


@given(st.integers(1, 8), st.integers(0, 4), st.floats(1e-3, 1e3))
def test_rank_of_equal_singular_values_is_their_number(rank, zeros, scale):
    matrix = torch.zeros(rank + zeros + 2, rank + zeros)
    matrix[:rank, :rank] = torch.eye(rank) * scale
    assert effective_rank(matrix) == pytest.approx(rank, rel=1e-9)


def test_rank_by_hand():
    # singular values 3 and 1: shares 3/4 and 1/4
    expected = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected, rel=1e-12)
    assert effective_rank(torch.outer(torch.arange(1.0, 5), torch.ones(3))) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.zeros(4, 3)) == 0
    assert math.isnan(effective_rank(torch.full((2, 2), float("nan"))))


def test_spread_by_hand():
    # unit vectors ±e1, ±e2, of whatever length before: each dimension has mean 0 and variance 1/2
    points = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [0.0, 5.0], [0.0, -2.0]])
    spread = measure_spread(points)
    assert spread.spread == pytest.approx(1)
    assert spread.rank == pytest.approx(2)
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
