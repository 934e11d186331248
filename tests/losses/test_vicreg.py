from __future__ import annotations

import pytest
import torch
from lightly.loss import VICRegLoss as LightlyVICRegLoss

from pyssl_fast.functional import vicreg
from pyssl_fast.losses import VICRegLoss
from tests.functional.covariance.cases import views


@pytest.mark.parametrize("arguments", [(), (1.0, 2.0, 3.0, False, 0.01)])
@pytest.mark.parametrize("shape", [(9, 20), (5, 3, 4)], ids=str)
def test_takes_the_place_of_lightlys(arguments, shape: tuple[int, ...]) -> None:
    z_a, z_b = views(*shape)
    ours = VICRegLoss(*arguments)(z_a=z_a, z_b=z_b)
    torch.testing.assert_close(ours, LightlyVICRegLoss(*arguments)(z_a=z_a, z_b=z_b), rtol=1e-5, atol=1e-5)


def test_passes_its_settings_on() -> None:
    z_a, z_b = views(9, 20)
    loss, terms = VICRegLoss(1.0, 2.0, 3.0, variance="sum", return_terms=True)(z_a, z_b)
    want, want_terms = vicreg(z_a, z_b, 1.0, 2.0, 3.0, variance="sum", return_terms=True)
    assert torch.equal(loss, want) and terms == want_terms


def test_says_what_it_is() -> None:
    want = "VICRegLoss(lambda_param=25, mu_param=25, nu_param=1, eps=0.0001, variance='mean')"
    assert repr(VICRegLoss()) == want
    assert not VICRegLoss().state_dict()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gather_distributed": True}, NotImplementedError, "gather_distributed=True"),
        ({"mu_param": -1}, ValueError, "mu_param must be .* got -1"),
        ({"eps": 0}, ValueError, "eps must be .* got 0"),
        ({"variance": "both"}, ValueError, "variance must be one of mean, sum; got 'both'"),
    ],
)
def test_refuses(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        VICRegLoss(**arguments)
