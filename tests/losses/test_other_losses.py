"""The modules beyond plain softmax: the settings they pass on, their drop-in signatures, what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import KoLeoLoss as LightlyKoLeoLoss
from lightly.loss import NegativeCosineSimilarity as LightlyNegativeCosineSimilarity
from lightly.loss.hypersphere_loss import HypersphereLoss as LightlyHypersphereLoss
from open_clip.loss import SigLipLoss as OpenClipSigLipLoss
from pytorch_metric_learning.losses import TripletMarginLoss as MetricLearningTripletMarginLoss
from torch import nn

from pyssl_fast import functional, losses
from pyssl_fast.modules import KeyQueue

Z0, Z1, Z2 = torch.randn(3, 12, 6)
LABELS = torch.arange(12) // 3


@pytest.mark.parametrize(
    ("ours", "theirs", "arguments", "inputs"),
    [
        (losses.SigLipLoss, OpenClipSigLipLoss, (), (Z0, Z1, torch.tensor(2.0), torch.tensor(-1.0))),
        (losses.SigLipLoss, OpenClipSigLipLoss, (True, 0, 1, "shift"), (Z0, Z1, 2.0, -1.0)),
        (losses.KoLeoLoss, LightlyKoLeoLoss, (), (Z0,)),
        (losses.KoLeoLoss, LightlyKoLeoLoss, (1, 1e-6), (Z0,)),
        (losses.NegativeCosineSimilarity, LightlyNegativeCosineSimilarity, (), (Z0, Z1)),
        (losses.NegativeCosineSimilarity, LightlyNegativeCosineSimilarity, (0, 1e-6), (Z0, Z1)),
        (losses.HypersphereLoss, LightlyHypersphereLoss, (), (Z0, Z1)),
        (losses.HypersphereLoss, LightlyHypersphereLoss, (2.0, 0.5, 1.0), (Z0, Z1)),
        (losses.TripletMarginLoss, nn.TripletMarginLoss, (), (Z0, Z1, Z2)),
        (losses.TripletMarginLoss, nn.TripletMarginLoss, (0.2, 1.0, 1e-3, True), (Z0, Z1, Z2)),
        (losses.BatchTripletMarginLoss, MetricLearningTripletMarginLoss, (), (Z0, LABELS)),
        (losses.BatchTripletMarginLoss, MetricLearningTripletMarginLoss, (0.4,), (Z0, LABELS)),
    ],
)
def test_takes_the_place_of(ours, theirs, arguments, inputs) -> None:
    torch.testing.assert_close(ours(*arguments)(*inputs), theirs(*arguments)(*inputs), rtol=1e-5, atol=1e-6)


def test_siglip_loss() -> None:
    assert losses.SigLipLoss(chunk_size=4)(Z0, Z1, 2.0, -1.0, output_dict=True).keys() == {"contrastive_loss"}
    ids, weight = LABELS, torch.rand(12)
    ours = losses.SigLipLoss(reduction="none")(Z0, Z1, 2.0, logit_bias=None, ids=ids, weight=weight)
    assert torch.equal(ours, functional.siglip(Z0, Z1, 2.0, ids=ids, weight=weight, reduction="none"))


def test_sup_con_loss() -> None:
    features, weight = F.normalize(torch.stack((Z0, Z1), 1), dim=2), torch.rand(12)
    ours = losses.SupConLoss(0.1, "one", 0.2, variant="in", normalize=True, without_positive="skip", reduction="sum")
    want = functional.sup_con(
        features, LABELS, None, 0.1, 0.2, "one", variant="in", normalize=True, weight=weight, reduction="sum"
    )
    assert torch.equal(ours(features, LABELS, weight=weight), want)
    mask = torch.rand(12, 12) > 0.5
    assert torch.equal(losses.SupConLoss()(features, mask=mask), functional.sup_con(features, mask=mask))


def test_learned_temperatures() -> None:
    for loss, inputs in (
        (losses.SupConLoss(nn.Parameter(torch.tensor(0.1))), (torch.stack((Z0, Z1), 1), LABELS)),
        (losses.NNCLRLoss(nn.Parameter(torch.tensor(0.1))), (Z0, Z1)),
    ):
        assert [name for name, _ in loss.named_parameters()] == ["temperature"]
        loss(*inputs).backward()
        assert loss.temperature.grad is not None and loss.temperature.grad != 0


def test_nnclr_loss() -> None:
    weight = torch.rand(12)
    for symmetric in (False, True):
        ours = losses.NNCLRLoss(0.2, symmetric=symmetric, label_smoothing=0.1)(Z0, Z1, ids=LABELS, weight=weight)
        want = functional.nnclr(Z0, Z1, 0.2, symmetric=symmetric, label_smoothing=0.1, ids=LABELS, weight=weight)
        assert torch.equal(ours, want)
    loss, metrics = losses.NNCLRLoss(return_metrics=True)(Z0, Z1)
    assert loss.shape == () and 0 <= metrics.accuracy <= 1


def test_mean_shift_loss_over_a_queue() -> None:
    queue = KeyQueue(40, 6)
    queue.update(Z1)  # as in the paper: the targets first
    query = Z0.clone().requires_grad_()
    loss = losses.MeanShiftLoss(3, normalize_bank=False)(query, Z1, queue.keys)
    torch.testing.assert_close(loss, functional.mean_shift(Z0, Z1, queue.keys, 3))
    queue.update(Z2)
    loss.backward()
    assert query.grad is not None
    one = losses.MeanShiftLoss(1, reduction="none")(Z0, Z1, F.normalize(Z1))
    torch.testing.assert_close(one, 2 - 2 * F.cosine_similarity(Z0, Z1))
    _, purity = losses.MeanShiftLoss(1, return_metrics=True)(Z0, Z1, Z1, LABELS, LABELS)
    assert purity == 1


def test_spectral_and_hard_triplets_pass_their_settings_on() -> None:
    assert torch.equal(losses.SpectralContrastiveLoss(0.5)(Z0, Z1), functional.spectral_contrastive(Z0, Z1, 0.5))
    options = {"mining": "hard", "distance": "cosine", "normalize": False, "reduction": "mean"}
    ours = losses.BatchTripletMarginLoss(0.3, **options)(Z0, LABELS)
    assert torch.equal(ours, functional.triplet_margin_in_batch(Z0, LABELS, 0.3, **options))
    assert losses.TripletMarginLoss(reduction="none")(Z0, Z1, Z2).shape == (12,)
    assert losses.KoLeoLoss(topk=2, reduction="none")(Z0).shape == (12, 2)
    assert losses.NegativeCosineSimilarity(reduction="none")(Z0, Z1).shape == (12,)


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        (losses.SigLipLoss(), "SigLipLoss(reduction='mean')"),
        (
            losses.SupConLoss(0.1),
            "SupConLoss(temperature=0.1, reduction='mean', contrast_mode='all', base_temperature=0.07, variant='out')",
        ),
        (losses.NNCLRLoss(), "NNCLRLoss(temperature=0.1, reduction='mean', symmetric=False)"),
        (losses.MeanShiftLoss(), "MeanShiftLoss(count=5, reduction='mean')"),
        (losses.SpectralContrastiveLoss(), "SpectralContrastiveLoss(mu=1)"),
        (losses.TripletMarginLoss(), "TripletMarginLoss(margin=1, p=2, eps=1e-06, swap=False, reduction='mean')"),
        (
            losses.BatchTripletMarginLoss(),
            "BatchTripletMarginLoss(margin=0.05, mining='all', distance='euclidean', normalize=True,"
            " reduction='nonzero')",
        ),
        (losses.HypersphereLoss(), "HypersphereLoss(t=1, lam=1, alpha=2)"),
        (losses.KoLeoLoss(), "KoLeoLoss(p=2, eps=1e-08, topk=1, reduction='mean')"),
        (losses.NegativeCosineSimilarity(), "NegativeCosineSimilarity(dim=1, eps=1e-08, reduction='mean')"),
    ],
)
def test_prints_its_settings(loss: nn.Module, shown: str) -> None:
    assert repr(loss) == shown


@pytest.mark.parametrize(
    ("loss", "arguments", "error", "message"),
    [
        ("SigLipLoss", {"world_size": 2}, NotImplementedError, "world_size=2: one process"),
        ("SigLipLoss", {"dist_impl": "ring"}, ValueError, "dist_impl must be one of bidir, shift, reduce, gather"),
        ("SigLipLoss", {"chunk_size": -1}, ValueError, "chunk_size must be 0 or more; got -1"),
        ("SigLipLoss", {"reduction": "max"}, ValueError, "reduction must be one of"),
        ("SupConLoss", {"temperature": 0}, ValueError, "temperature must be 1e-8 to 1e30"),
        ("SupConLoss", {"contrast_mode": "two"}, ValueError, "contrast_mode must be one of all, one"),
        ("SupConLoss", {"variant": "up"}, ValueError, "variant must be one of out, in, sum"),
        ("SupConLoss", {"without_positive": "drop"}, ValueError, "without_positive must be one of zero, skip"),
        ("SupConLoss", {"base_temperature": 0}, ValueError, "base_temperature must be"),
        ("NNCLRLoss", {"temperature": "warm"}, TypeError, "temperature must be a number or a Tensor; got str"),
        ("MeanShiftLoss", {"count": 0}, ValueError, "count must be 1 or more; got 0"),
        ("MeanShiftLoss", {"reduction": "max"}, ValueError, "reduction must be one of"),
        ("SpectralContrastiveLoss", {"mu": -1}, ValueError, "mu must be"),
        ("TripletMarginLoss", {"margin": 0}, ValueError, "margin must be"),
        ("TripletMarginLoss", {"reduction": "nonzero"}, ValueError, "reduction must be one of none, mean, sum"),
        ("BatchTripletMarginLoss", {"mining": "easy"}, ValueError, "mining must be one of all, hard, semi-hard"),
        ("BatchTripletMarginLoss", {"distance": "l1"}, ValueError, "distance must be one of euclidean, cosine"),
        ("BatchTripletMarginLoss", {"reduction": "max"}, ValueError, "reduction must be one of nonzero, mean"),
        ("BatchTripletMarginLoss", {"margin": "1"}, TypeError, "margin must be a number"),
        ("HypersphereLoss", {"alpha": 0}, ValueError, "alpha must be"),
        ("HypersphereLoss", {"t": float("nan")}, ValueError, "t must be"),
        ("KoLeoLoss", {"eps": 0}, ValueError, "eps must be"),
        ("KoLeoLoss", {"topk": 1.5}, TypeError, "topk must be a whole number; got float"),
        ("NegativeCosineSimilarity", {"eps": -1}, ValueError, "eps must be"),
    ],
)
def test_refuses(loss: str, arguments: dict, error, message) -> None:
    with pytest.raises(error, match=message):
        getattr(losses, loss)(**arguments)
