from __future__ import annotations

import pytest
import torch

from pyssl_fast.functional import hard_negative_nt_xent
from pyssl_fast.losses import HardNegativeLoss


def test_passes_its_settings_on() -> None:
    views, ids, weight = torch.randn(3, 5, 4), torch.tensor([0, 1, 0, 2, 3]), torch.rand(5)
    assert torch.equal(HardNegativeLoss()(*views[:2]), hard_negative_nt_xent(*views[:2]))
    loss = HardNegativeLoss(0.3, 2.0, 0.05, reduction="none", return_metrics=True)
    found, metrics = loss(*views, ids=ids, weight=weight)
    want = hard_negative_nt_xent(
        *views[:2], 0.3, beta=2.0, debias=0.05, extra_views=views[2:], ids=ids, weight=weight, reduction="none"
    )
    assert torch.equal(found, want) and metrics.lse.shape == (3, 5)
    assert repr(loss) == "HardNegativeLoss(temperature=0.3, reduction='none', debias=0.05, beta=2)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be 1e-8"),
        ({"beta": -1}, "beta must be 0 to 1000; got -1"),
        ({"debias": 1}, "debias must be 0 to 1"),
    ],
)
def test_refuses(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        HardNegativeLoss(**arguments)
