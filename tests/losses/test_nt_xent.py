from __future__ import annotations

import pytest
import torch
from lightly.loss import NTXentLoss as LightlyNTXentLoss

from pyssl_fast.losses import NTXentLoss


def test_takes_the_place_of_lightlys() -> None:
    z0, z1 = torch.randn(16, 8), torch.randn(16, 8)
    for arguments in ((), (0.2,), (0.1, 0, False)):
        torch.testing.assert_close(NTXentLoss(*arguments)(z0, z1), LightlyNTXentLoss(*arguments)(z0, z1))
    ours = NTXentLoss(temperature=0.3, memory_bank_size=0, gather_distributed=False)(out0=z0, out1=z1)
    assert ours.shape == ()


def test_learns_its_temperature() -> None:
    loss = NTXentLoss(torch.nn.Parameter(torch.tensor(0.5)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    loss(torch.randn(16, 8), torch.randn(16, 8)).backward()
    assert loss.temperature.grad is not None and loss.temperature.grad != 0


def test_further_views_and_reduction() -> None:
    views = torch.randn(3, 5, 4)
    assert NTXentLoss(reduction="none")(*views).shape == (3, 5)


def test_prints_its_settings() -> None:
    assert repr(NTXentLoss(0.25)) == "NTXentLoss(temperature=0.25, reduction='mean')"
    learned = NTXentLoss(torch.nn.Parameter(torch.tensor(0.25)))
    assert repr(learned) == "NTXentLoss(temperature=0.25 (learned), reduction='mean')"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 1e-9}, ValueError, "temperature must be 1e-8 to 1e30"),
        ({"reduction": "max"}, ValueError, "reduction must be one of"),
        ({"memory_bank_size": 64}, NotImplementedError, "memory_bank_size=64: only 0"),
        ({"memory_bank_size": (64, 8)}, NotImplementedError, r"memory_bank_size=\(64, 8\): only 0"),
        ({"gather_distributed": True}, NotImplementedError, "gather_distributed=True"),
    ],
)
def test_refuses(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        NTXentLoss(**arguments)
