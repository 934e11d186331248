from __future__ import annotations

import pytest
import torch
from lightly.loss.wmse_loss import Whitening2d as LightlyWhitening2d
from torch import Tensor

from pyssl_fast.modules import Whitening2d
from tests.functional.covariance.cases import views


def batches(count: int, rows: int = 20, dim: int = 5) -> Tensor:
    return torch.stack([views(rows, dim, count=1, seed=seed)[0] for seed in range(count)])


@pytest.mark.parametrize("arguments", [(5,), (5, 0.3, True, 0.1), (5, 0.0), (5, 1.0), (5, 0.1, False)])
def test_takes_the_place_of_lightlys(arguments) -> None:
    ours, theirs = Whitening2d(*arguments), LightlyWhitening2d(*arguments)
    for x in batches(4):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    ours.load_state_dict(theirs.state_dict())
    x = batches(5)[4]
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.01, 0.4, 1.0])
def test_groups_are_as_many_calls_in_their_order(momentum: float) -> None:
    one, other = Whitening2d(5, momentum), Whitening2d(5, momentum)
    x = batches(7)
    torch.testing.assert_close(one(x), torch.stack([other(group) for group in x]), rtol=1e-4, atol=1e-4)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.eval()(x), torch.stack([other.eval()(group) for group in x]), rtol=1e-4, atol=1e-4)


def test_statistics_stay_in_float32_under_autocast() -> None:
    one, other = Whitening2d(5), Whitening2d(5)
    x = batches(3)
    with torch.autocast("cpu", torch.bfloat16):
        white = one(x)
        assert torch.equal(white, other(x.float())) and white.dtype == torch.float32
        evaluated = one.eval()(x.bfloat16())
    assert torch.equal(one.running_variance, other.running_variance) and evaluated.dtype == torch.float32


def test_compiles_with_its_statistics() -> None:
    torch.compiler.reset()
    one, other = Whitening2d(5), Whitening2d(5)
    compiled = torch.compile(one, fullgraph=True, dynamic=True, backend="aot_eager")
    for x in batches(3):
        torch.testing.assert_close(compiled(x), other(x))
    torch.testing.assert_close(one.running_variance, other.running_variance)


def test_gradients_are_the_differences_in_evaluation_too() -> None:
    module = Whitening2d(3, eps=0.1).double()
    x = batches(1, 7, 3)[0].double().requires_grad_()
    module(x)
    assert torch.autograd.gradcheck(module.eval(), (x,))


def test_says_what_it_is() -> None:
    assert repr(Whitening2d(5)) == "Whitening2d(num_features=5, momentum=0.01, track_running_stats=True, eps=0)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "num_features must be 1 or more; got 0"),
        ((5, 1.1), ValueError, r"momentum must be 0 to 1; got 1\.1"),
        ((5, 0.1, True, -1), ValueError, "eps must be 0 to 1; got -1"),
    ],
)
def test_refuses(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        Whitening2d(*arguments)


def test_wrong_rows_are_named() -> None:
    with pytest.raises(ValueError, match=r"x must have rows of num_features=5; got shape \[20, 4\]"):
        Whitening2d(5)(torch.ones(20, 4))
    with pytest.raises(ValueError, match=r"x must have shape \[N, D\]; got \[5\]"):
        Whitening2d(5)(torch.ones(5))
