from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss as OpenClipLoss

from pyssl_fast.functional import clip_loss
from pyssl_fast.losses import ClipLoss

IMAGE, TEXT = F.normalize(torch.randn(2, 9, 6), dim=2)


def test_takes_the_place_of_open_clips() -> None:
    scale = torch.nn.Parameter(torch.tensor(2.5)).exp()
    for arguments in ((), (True, True, True, 0, 1), (False, False, True)):
        ours, theirs = ClipLoss(*arguments), OpenClipLoss(*arguments)
        for more in ((), (None,), (torch.tensor(-10.0),), (None, False)):
            torch.testing.assert_close(ours(IMAGE, TEXT, scale, *more), theirs(IMAGE, TEXT, scale, *more))
        named = [loss(IMAGE, TEXT, logit_scale=scale, output_dict=True) for loss in (ours, theirs)]
        assert named[0].keys() == named[1].keys() == {"contrastive_loss"}
        torch.testing.assert_close(named[0]["contrastive_loss"], named[1]["contrastive_loss"])


def test_passes_its_settings_on() -> None:
    ids, weight = torch.arange(9) // 2, torch.rand(9)
    loss = ClipLoss(reduction="none", label_smoothing=0.1, return_metrics=True)
    found = loss(IMAGE, TEXT, 20.0, output_dict=True, ids=ids, weight=weight)
    want, metrics = clip_loss(
        IMAGE, TEXT, 20.0, ids=ids, weight=weight, reduction="none", label_smoothing=0.1, return_metrics=True
    )
    assert torch.equal(found["contrastive_loss"], want) and torch.equal(found["metrics"].lse, metrics.lse)
    assert repr(loss) == "ClipLoss(reduction='none', label_smoothing=0.1)"


@pytest.mark.parametrize("arguments", [{"world_size": 2}, {"use_horovod": True}])
def test_refuses_more_processes(arguments) -> None:
    with pytest.raises(NotImplementedError, match="one process is supported"):
        ClipLoss(**arguments)
