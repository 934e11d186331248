"""pyssl_fast.functional.dcl and dclw as their users call them; what they share with others is in test_softmax.py."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightly.loss import DCLLoss as LightlyDCLLoss
from lightly.loss import DCLWLoss as LightlyDCLWLoss

from pyssl_fast.functional import dcl, dclw
from tests.functional.similarity.cases import embeddings


def both(samples: int, dim: int) -> list[torch.Tensor]:
    return [x.clone().requires_grad_() for x in embeddings(samples, 2, dim, torch.float64).split(samples)]


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("shape", [(2, 1), (5, 3), (33, 20)])
def test_value_and_gradient_are_lightlys(shape: tuple[int, int], temperature: float) -> None:
    inputs = both(*shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly copies a tensor by torch.tensor
        theirs = [LightlyDCLLoss(temperature)(*inputs), LightlyDCLWLoss(temperature, 0.3)(*inputs)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = [dcl(*inputs, temperature), dclw(*inputs, temperature, 0.3)]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
        for a, b in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(other, inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_weights_of_the_positives() -> None:
    inputs = both(5, 3)
    weight = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
    plain, none = dcl(*inputs, reduction="none"), dcl(*inputs, positive_weight=torch.zeros(5), reduction="none")
    loss = dcl(*inputs, positive_weight=weight, reduction="none")
    torch.testing.assert_close(loss, none + weight * (plain - none))
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    torch.testing.assert_close(gradient, plain - none)
    torch.testing.assert_close(dcl(*inputs, positive_weight=torch.ones(5), reduction="none"), plain)


def test_dclw_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    inputs = both(5, 3)
    compiled = torch.compile(dclw, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), dclw(*inputs))


X = torch.randn(4, 3)


@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "error", "message"),
    [
        (dcl, (X, X[:3]), {}, ValueError, r"z1 must have z0's shape \[4, 3\]"),
        (dcl, (X[:1], X[:1]), {}, ValueError, "z0 must hold two samples or more"),
        (dcl, (X, X), {"positive_weight": torch.ones(3)}, ValueError, r"positive_weight must have shape \[4\]"),
        (dcl, (X, X), {"positive_weight": torch.ones(3, 4)}, ValueError, r"positive_weight must have shape \[2, 4\]"),
        (dcl, (X, X, 0), {}, ValueError, "temperature must be 1e-8 to 1e30 in size; got 0"),
        (dclw, (X, X, 0.1, 0), {}, ValueError, "sigma must be .* got 0"),
        (dclw, (X, X, 0.1, "wide"), {}, TypeError, "sigma must be a number"),
        (dclw, (X[0], X), {}, ValueError, r"z0 must have shape \[N, D\]; got \[3\]"),
    ],
)
def test_bad_input_is_named(function, arguments, keywords, error, message) -> None:
    with pytest.raises(error, match=message):
        function(*arguments, **keywords)
