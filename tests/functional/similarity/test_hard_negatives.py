"""pyssl_fast.functional.hard_negative_nt_xent; what it shares with others is in test_softmax.py."""

from __future__ import annotations

import pytest
import torch

from pyssl_fast.functional import hard_negative_nt_xent, nt_xent
from tests.functional.similarity.cases import Member, embeddings, views


def batch(count: int = 2) -> list[torch.Tensor]:
    return [x.clone().requires_grad_() for x in embeddings(6, count, 4, torch.float64).split(6)]


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("debias", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("count", [2, 3])
def test_value_and_gradient_are_the_papers(beta: float, debias: float, count: int) -> None:
    paper = Member(hard_negative_nt_xent, views, lambda n, d: [(n, d)] * count, beta=beta)
    inputs = batch(count)
    ours = hard_negative_nt_xent(*inputs[:2], 0.4, beta=beta, debias=debias, extra_views=inputs[2:])
    truth = paper.rows(inputs, 0.4, debias=debias).mean()
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)
    for mine, true in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(truth, inputs), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-12)


def test_without_hardness_it_is_the_debiased_loss_and_without_bias_nt_xent() -> None:
    inputs = batch()
    torch.testing.assert_close(
        hard_negative_nt_xent(*inputs, 0.4, beta=0, debias=0.1), nt_xent(*inputs, 0.4, debias=0.1)
    )
    assert torch.equal(hard_negative_nt_xent(*inputs, 0.4, beta=0, debias=0), nt_xent(*inputs, 0.4))
    losses = [hard_negative_nt_xent(*inputs, 0.4, beta=beta) for beta in (0, 1, 3, 10)]
    assert losses == sorted(losses) and losses[0] < losses[-1]


def test_low_temperatures_stay_finite() -> None:
    # exp((1 + β)/τ) is e⁶⁰⁰.
    inputs = [x.detach().float().requires_grad_() for x in batch()]
    loss = hard_negative_nt_xent(*inputs, 0.01, beta=5.0)
    assert loss.isfinite() and all(x.isfinite().all() for x in torch.autograd.grad(loss, inputs))


X = torch.randn(4, 3)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"beta": -1.0}, ValueError, "beta must be 0 to 1000; got -1.0"),
        ({"beta": torch.tensor(1.0)}, TypeError, "beta must be a number; got Tensor"),
        ({"debias": 1.0}, ValueError, r"debias must be 0 to 1 \(excluded\); got 1.0"),
        ({"extra_views": [X[:2]]}, ValueError, r"extra_views\[0\] must have z0's shape"),
        ({"temperature": 0}, ValueError, "temperature must be 1e-8"),
    ],
)
def test_bad_input_is_named(keywords, error, message) -> None:
    with pytest.raises(error, match=message):
        hard_negative_nt_xent(X, X, **keywords)
