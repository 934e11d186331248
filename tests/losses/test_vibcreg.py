from __future__ import annotations

import pytest
import torch

from pyssl_fast.functional import vibcreg
from pyssl_fast.losses import VIbCRegLoss
from tests.functional.covariance.cases import views


def test_passes_its_settings_on() -> None:
    z0, z1 = views(9, 20)
    assert torch.equal(VIbCRegLoss()(z0, z1), vibcreg(z0, z1))
    loss, terms = VIbCRegLoss(1.0, 2.0, 3.0, eps=0.01, return_terms=True)(z0, z1)
    want, want_terms = vibcreg(z0, z1, 1.0, 2.0, 3.0, eps=0.01, return_terms=True)
    assert torch.equal(loss, want) and terms == want_terms


def test_says_what_it_is() -> None:
    want = "VIbCRegLoss(sim_loss_weight=25, var_loss_weight=25, cov_loss_weight=200, eps=0.0001)"
    assert repr(VIbCRegLoss()) == want


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cov_loss_weight": -1}, ValueError, "cov_loss_weight must be .* got -1"),
        ({"eps": 0}, ValueError, "eps must be .* got 0"),
    ],
)
def test_refuses(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        VIbCRegLoss(**arguments)
