from __future__ import annotations

import pytest
import torch
from lightly.loss.lejepa_loss import LeJEPALoss as LightlyLeJEPALoss
from lightly.loss.lejepa_loss import SIGReg as LightlySIGReg
from torch import Tensor

from pyssl_fast.functional import lejepa, sigreg
from pyssl_fast.losses import LeJEPALoss, SIGReg


def views(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 12, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", [{}, {"knots": 8, "t_max": 2.0, "num_vectors": 30, "gather_distributed": False}])
@pytest.mark.parametrize("shape", [(12, 5), (2, 12, 5)], ids=str)
def test_sigreg_takes_the_place_of_lightlys(settings: dict, shape: tuple[int, ...]) -> None:
    proj = views(2)[0].view(shape) if len(shape) == 2 else views(2)
    torch.manual_seed(0)
    ours = SIGReg(**settings)(proj)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, LightlySIGReg(**settings)(proj), rtol=1e-5, atol=0)


@pytest.mark.parametrize("arguments", [(), (0.3, False, 8, 2.0, 30)])
def test_lejepa_takes_the_place_of_lightlys(arguments: tuple) -> None:
    found = []
    for loss in (LeJEPALoss(*arguments), LightlyLeJEPALoss(*arguments)):
        local, of_all = views(4).requires_grad_(), views(2, 1).requires_grad_()
        torch.manual_seed(0)
        value = loss(local_proj=local, global_proj=of_all)
        value.backward()
        found.append((value, local.grad, of_all.grad))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_passes_its_settings_on() -> None:
    local, of_all, vectors = views(4), views(2, 1), views(1, 2)[0].T
    settings = {"knots": 5, "t_max": 1.0, "num_vectors": 7}
    assert torch.equal(SIGReg(**settings)(local, vectors=vectors), sigreg(local, vectors, knots=5, t_max=1.0))
    drawn = [torch.Generator().manual_seed(2) for _ in range(4)]
    assert torch.equal(SIGReg(**settings)(local, generator=drawn[0]), sigreg(local, generator=drawn[1], **settings))
    loss = LeJEPALoss(0.2, False, 5, 1.0, 7, return_terms=True)
    ours = loss(local_proj=local, global_proj=of_all, generator=drawn[2])
    want = lejepa(local, of_all, lambda_param=0.2, generator=drawn[3], return_terms=True, **settings)
    assert ours == want
    ours = loss(local_proj=local, global_proj=of_all, vectors=vectors)
    assert ours == lejepa(local, of_all, vectors, lambda_param=0.2, return_terms=True, knots=5, t_max=1.0)


def test_arguments_are_keywords_where_lightlys_are() -> None:
    with pytest.raises(TypeError):
        SIGReg(17)
    with pytest.raises(TypeError):
        LeJEPALoss()(views(2), views(2))


def test_has_no_state_and_loads_lightlys() -> None:
    loss = LeJEPALoss()
    assert not loss.state_dict()
    loss.load_state_dict(LightlyLeJEPALoss().state_dict())
    SIGReg().load_state_dict(LightlySIGReg().state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        loss.load_state_dict({"sigreg.u": torch.zeros(1)})


def test_says_what_it_is() -> None:
    assert repr(SIGReg()) == "SIGReg(knots=17, t_max=3, num_vectors=1024)"
    assert "lambda_param=0.05" in repr(LeJEPALoss()) and "knots=17" in repr(LeJEPALoss())


@pytest.mark.parametrize(
    ("loss", "arguments", "error", "message"),
    [
        (SIGReg, {"gather_distributed": True}, NotImplementedError, "gather_distributed=True"),
        (LeJEPALoss, {"gather_distributed": True}, NotImplementedError, "gather_distributed=True"),
        (SIGReg, {"knots": 1}, ValueError, "knots must be 2 or more; got 1"),
        (SIGReg, {"t_max": 0}, ValueError, "t_max must be .* got 0"),
        (SIGReg, {"num_vectors": 0}, ValueError, "num_vectors must be 1 or more; got 0"),
        (LeJEPALoss, {"lambda_param": -0.1}, ValueError, "lambda_param must be 0 to 1; got -0.1"),
        (LeJEPALoss, {"sigreg_knots": 1}, ValueError, "knots must be 2 or more; got 1"),
    ],
)
def test_refuses(loss, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        loss(**arguments)
