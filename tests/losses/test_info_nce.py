from __future__ import annotations

import pytest
import torch

from pyssl_fast import functional
from pyssl_fast.functional import info_nce
from pyssl_fast.losses import InfoNCE, InfoNCELoss


def test_passes_its_settings_on() -> None:
    q, k = torch.randn(2, 5, 4)
    shared, own = torch.randn(6, 4), torch.randn(5, 3, 4)
    ids, weight = torch.tensor([0, 1, 0, 2, 3]), torch.rand(5)
    assert torch.equal(InfoNCELoss()(q, k), info_nce(q, k))
    assert torch.equal(InfoNCELoss(0.3, "sum")(q, k, shared), info_nce(q, k, shared, 0.3, "sum"))
    assert torch.equal(
        InfoNCELoss(0.3, "none", "paired", debias=0.1)(query=q, positive_key=k, negative_keys=own),
        info_nce(q, k, own, 0.3, "none", negative_mode="paired", debias=0.1),
    )
    options = {"negatives_normalized": True, "label_smoothing": 0.1, "return_metrics": True}
    inputs = {"ids": ids, "negative_ids": torch.arange(6), "weight": weight}
    ours, want = InfoNCELoss(**options)(q, k, shared, **inputs), info_nce(q, k, shared, **options, **inputs)
    assert torch.equal(ours[0], want[0]) and torch.equal(ours[1].lse, want[1].lse)


def test_learns_its_temperature_and_prints_it() -> None:
    loss = InfoNCELoss(torch.nn.Parameter(torch.tensor(0.5)))
    loss(torch.randn(5, 4), torch.randn(5, 4)).backward()
    assert loss.temperature.grad is not None and loss.temperature.grad != 0
    assert repr(loss) == "InfoNCELoss(temperature=0.5 (learned), reduction='mean')"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be 1e-8"),
        ({"reduction": "max"}, "reduction must be one of"),
        ({"negative_mode": "all"}, "negative_mode must be one of unpaired, paired; got 'all'"),
    ],
)
def test_refuses(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        InfoNCELoss(**arguments)


def test_the_names_and_the_order_of_others() -> None:
    assert InfoNCE is InfoNCELoss and functional.info_nce_loss is functional.info_nce
    q, k, others = torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 3, 4)
    want = functional.info_nce(q, k, others, 0.1, "none", negative_mode="paired")
    assert torch.equal(functional.info_nce(q, k, others, 0.1, "none", "paired"), want)
