from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import WMSELoss as LightlyWMSELoss

from pyssl_fast.losses import WMSELoss
from tests.functional.covariance.cases import views


def seeded(loss, z: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)
    return loss(z)


@pytest.mark.parametrize(
    "settings",
    [
        {"embedding_dim": 4, "w_size": 8},
        {"embedding_dim": 4, "w_size": 12, "momentum": 0.3, "eps": 0.1, "w_iter": 2, "num_samples": 3},
        {"embedding_dim": 4, "w_size": 8, "track_running_stats": False, "loss_fn": F.mse_loss},
    ],
)
def test_takes_the_place_of_lightlys(settings) -> None:
    ours, theirs = WMSELoss(**settings), LightlyWMSELoss(**settings)
    for seed in range(3):
        z = torch.cat(views(24, 4, count=settings.get("num_samples", 2), seed=seed))
        torch.testing.assert_close(seeded(ours, z), seeded(theirs, z), rtol=1e-4, atol=1e-5)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(seeded(ours.eval(), z), seeded(theirs.eval(), z), rtol=1e-4, atol=1e-5)
    assert ours.num_pairs == theirs.num_pairs


def test_gradients_reach_the_input_in_training_and_in_evaluation() -> None:
    loss = WMSELoss(4, w_size=8)
    z = torch.cat(views(24, 4)).requires_grad_()
    for mode in (True, False):
        (gradient,) = torch.autograd.grad(loss.train(mode)(z), z)
        assert gradient.isfinite().all() and (gradient != 0).any()


def test_compiles_with_its_statistics() -> None:
    torch.compiler.reset()
    loss, same = WMSELoss(4, w_size=8), WMSELoss(4, w_size=8)
    compiled = torch.compile(same, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples in (24, 16):
        z = torch.cat(views(samples, 4))
        torch.testing.assert_close(seeded(compiled, z), seeded(loss, z))
    torch.testing.assert_close(same.whitening.running_variance, loss.whitening.running_variance)


def test_says_what_it_is() -> None:
    assert "w_iter=1, w_size=256, num_samples=2" in repr(WMSELoss())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"w_size": 255}, ValueError, "w_size must be 2·embedding_dim=256 or more; got 255"),
        ({"num_samples": 1}, ValueError, "num_samples must be 2 or more; got 1"),
        ({"eps": 2}, ValueError, "eps must be 0 to 1; got 2"),
    ],
)
def test_refuses(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        WMSELoss(**arguments)
