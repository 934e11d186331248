from __future__ import annotations

import pytest
import torch
from lightly.loss import VICRegLLoss as LightlyVICRegLLoss

from pyssl_fast.losses import VICRegLLoss
from tests.functional.covariance.test_vicregl import GRIDS, PAIRS


@pytest.mark.parametrize("arguments", [(), (1.0, 2.0, 3.0, 0.4, False, 0.01, (5, 2))])
def test_takes_the_place_of_lightlys(arguments) -> None:
    ours, theirs = VICRegLLoss(*arguments), LightlyVICRegLLoss(*arguments)
    for views in ((PAIRS[:2], GRIDS[:2]), (PAIRS[:2], GRIDS[:2], PAIRS[2:], GRIDS[2:])):
        loss = ours(*views)
        assert loss.shape == ()
        torch.testing.assert_close(loss, theirs(*views)[0], rtol=1e-5, atol=1e-5)


def test_says_what_it_is() -> None:
    want = "lambda_param=25, mu_param=25, nu_param=1, alpha=0.75, eps=0.0001, num_matches=(20, 4)"
    assert repr(VICRegLLoss()) == f"VICRegLLoss({want})"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gather_distributed": True}, NotImplementedError, "gather_distributed=True"),
        ({"alpha": 2}, ValueError, "alpha must be 0 to 1; got 2"),
        ({"num_matches": (20, 0)}, ValueError, r"num_matches\[1\] must be 1 or more; got 0"),
    ],
)
def test_refuses(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        VICRegLLoss(**arguments)
