from __future__ import annotations

import copy

import pytest
import torch
from lightly.loss import TiCoLoss as LightlyTiCoLoss

from pyssl_fast.losses import TiCoLoss
from tests.functional.covariance.cases import views


def batches(count: int = 3) -> list[tuple[torch.Tensor, ...]]:
    return [views(9, 20, seed=10 * batch) for batch in range(count)]


@pytest.mark.parametrize("dim", [None, 20])
@pytest.mark.parametrize("arguments", [(), (0.5, 3.0, False)])
def test_takes_the_place_of_lightlys(arguments, dim: int | None) -> None:
    ours, theirs = TiCoLoss(*arguments, dim=dim), LightlyTiCoLoss(*arguments)
    for number, (z_a, z_b) in enumerate(batches(4)):
        update = number != 2
        loss = ours(z_a=z_a, z_b=z_b, update_covariance_matrix=update)
        want = theirs(z_a=z_a, z_b=z_b, update_covariance_matrix=update)
        torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.C, theirs.C, rtol=1e-5, atol=1e-7)


def test_an_update_before_backward_leaves_the_gradient_alone() -> None:
    loss = TiCoLoss(dim=20)
    gradients = []
    for update in (False, True):
        z_a, z_b = (x.requires_grad_() for x in batches(1)[0])
        value = loss(z_a, z_b, update_covariance_matrix=update)
        value.backward()
        gradients.append(z_a.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dim", [None, 20])
def test_the_state_dict_continues_to_the_same_values(dim: int | None) -> None:
    first, *rest = batches()
    one = TiCoLoss()
    one(*first)
    assert list(one.state_dict()) == ["C"]
    other = TiCoLoss(dim=dim)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for z in rest:
        assert torch.equal(one(*z), other(*z))


def test_states_without_a_covariance_keep_what_is_there() -> None:
    loss = TiCoLoss()
    loss(*batches(1)[0])
    before = loss.C.clone()
    for state in (TiCoLoss().state_dict(), {}):
        loss.load_state_dict(state)
        assert torch.equal(loss.C, before)
    with pytest.raises(RuntimeError, match="size mismatch for C"):
        loss.load_state_dict(TiCoLoss(dim=7).state_dict())
    fresh = TiCoLoss()
    fresh.load_state_dict(fresh.state_dict())
    assert fresh.C.shape == (0, 0)


def test_moves_with_the_module() -> None:
    loss = TiCoLoss(dim=20).double()
    loss(*batches(1)[0])
    assert loss.C.dtype == torch.float64 and torch.nn.Sequential(loss).to("meta")[0].C.device.type == "meta"


def test_a_batch_that_is_not_a_number_does_not_stay() -> None:
    loss = TiCoLoss()
    z_a, z_b = batches(1)[0]
    loss(z_a, z_b)
    before = loss.C.clone()
    bad = z_a.clone()
    bad[0, 0] = torch.nan
    assert loss(bad, z_b).isnan() and torch.equal(loss.C, before)
    fresh = TiCoLoss()
    assert fresh(bad, z_b).isnan() and torch.equal(fresh.C, torch.zeros(20, 20))


@pytest.mark.parametrize("dim", [None, 20])
def test_compiles_with_its_state(dim: int | None) -> None:
    torch.compiler.reset()
    loss, same = TiCoLoss(dim=dim), TiCoLoss(dim=dim)
    compiled = torch.compile(same, fullgraph=True, dynamic=True, backend="aot_eager")
    for z in batches():
        torch.testing.assert_close(compiled(*z), loss(*z))
        torch.testing.assert_close(same.C, loss.C)


def test_says_what_it_is() -> None:
    assert repr(TiCoLoss()) == "TiCoLoss(beta=0.9, rho=8, dim=None)"
    assert repr(TiCoLoss(0.5, 2, dim=20)) == "TiCoLoss(beta=0.5, rho=2, dim=20)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gather_distributed": True}, NotImplementedError, "gather_distributed=True"),
        ({"beta": 2}, ValueError, "beta must be 0 to 1; got 2"),
        ({"rho": -1}, ValueError, "rho must be .* got -1"),
        ({"dim": 0}, ValueError, "dim must be 1 or more; got 0"),
        ({"dim": 2.0}, TypeError, "dim must be a whole number; got float"),
    ],
)
def test_refuses(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        TiCoLoss(**arguments)


def test_another_length_is_named() -> None:
    with pytest.raises(ValueError, match=r"covariance must have shape \[20, 20\]; got \[7, 7\]"):
        TiCoLoss(dim=7)(*batches(1)[0])
