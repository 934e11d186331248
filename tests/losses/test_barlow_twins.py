from __future__ import annotations

import pytest
import torch
from lightly.loss import BarlowTwinsLoss as LightlyBarlowTwinsLoss

from pyssl_fast.functional import barlow_twins
from pyssl_fast.losses import BarlowTwinsLoss
from tests.functional.covariance.cases import views


@pytest.mark.parametrize("arguments", [(), (0.1, False)])
def test_takes_the_place_of_lightlys(arguments) -> None:
    z_a, z_b = views(9, 20)
    ours = BarlowTwinsLoss(*arguments)(z_a=z_a, z_b=z_b)
    torch.testing.assert_close(ours, LightlyBarlowTwinsLoss(*arguments)(z_a=z_a, z_b=z_b), rtol=1e-5, atol=1e-5)


def test_passes_its_settings_on() -> None:
    z_a, z_b = views(9, 20)
    loss, terms = BarlowTwinsLoss(0.1, eps=0.01, scale_loss=0.024, return_terms=True)(z_a, z_b)
    want, want_terms = barlow_twins(z_a, z_b, 0.1, eps=0.01, scale_loss=0.024, return_terms=True)
    assert torch.equal(loss, want) and terms == want_terms


def test_says_what_it_is() -> None:
    assert repr(BarlowTwinsLoss()) == "BarlowTwinsLoss(lambda_param=0.005, eps=1e-05, scale_loss=1)"
    assert not BarlowTwinsLoss().state_dict()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gather_distributed": True}, NotImplementedError, "gather_distributed=True"),
        ({"lambda_param": -1}, ValueError, "lambda_param must be .* got -1"),
        ({"eps": 0}, ValueError, "eps must be .* got 0"),
        ({"scale_loss": "0.024"}, TypeError, "scale_loss must be a number"),
    ],
)
def test_refuses(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        BarlowTwinsLoss(**arguments)
