from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import SupConLoss as MetricLearningSupConLoss

import pyssl_fast
from pyssl_fast.functional import nt_xent, sup_con
from tests.functional.similarity.peers import assert_like_peer, classes, rows


def eager(features, temperature, base=0.07, labels=None, mask=None, mode="all", variant="out"):
    """[anchors' views, B] by the paper's formulas, over explicit [A, N] pairs. Without positives: 0."""
    samples, views = features.shape[:2]
    z = features.transpose(0, 1).reshape(views * samples, -1)
    if mask is None:
        labels = torch.arange(samples) if labels is None else labels
        mask = labels[:, None] == labels
    groups = views if mode == "all" else 1
    mask = mask.to(z.dtype).repeat(groups, views)
    own = torch.eye(len(z), dtype=torch.bool)[: len(mask)]
    mask = mask.masked_fill(own, 0)
    t = z[: len(mask)] @ z.T / temperature
    log_share = t - t.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True)
    number = mask.sum(1)
    if variant == "out":
        loss = -(mask * log_share).sum(1) / number.clamp_min(1e-6)
    else:
        inside = log_share.masked_fill(mask == 0, -torch.inf).logsumexp(1)
        loss = -inside + (number.log() if variant == "in" else 0)
    loss = loss.masked_fill(number == 0, 0)
    return (loss * (1 if base is None else temperature / base)).view(groups, samples)


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with pyssl_fast.use_backend(request.param):
        yield


def features(samples: int, views: int, dim: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(rows(samples * views, dim, seed).view(samples, views, dim), dim=2)


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("kind", ["none", "labels", "mask", "weights"])
@pytest.mark.parametrize(
    ("samples", "views", "dim", "temperature"), [(5, 2, 3, 0.5), (23, 3, 17, 0.1), (40, 1, 8, 0.07)]
)
def test_value_and_gradients_are_the_papers(samples, views, dim, temperature, kind, mode) -> None:
    x = features(samples, views, dim)
    given = {
        "none": {},
        "labels": {"labels": classes(samples, 5)},
        "mask": {"mask": rows(samples, samples, 3) > 0.3},  # asymmetric
        "weights": {"mask": rows(samples, samples, 3).clamp_min(0)},
    }[kind]
    assert_like_peer(
        lambda f, t: sup_con(f, temperature=t, contrast_mode=mode, **given),
        lambda f, t: eager(f, t, mode=mode, **given).mean(),
        (x, torch.tensor(temperature)),
        what=f"{kind} {mode}",
    )


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("variant", ["in", "sum"])
def test_the_mean_inside_the_logarithm(variant: str, mode: str) -> None:
    labels = classes(21, 6)
    assert_like_peer(
        lambda f, t: sup_con(f, labels, None, t, None, mode, variant=variant, reduction="none"),
        lambda f, t: eager(f, t, None, labels, mode=mode, variant=variant)[() if mode == "all" else 0],
        (features(21, 2, 9), torch.tensor(0.2)),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    labels = classes(30, 4)
    assert_like_peer(
        lambda f: sup_con(f, labels), lambda f: eager(f, 0.07, labels=labels).mean(), (features(30, 2, 16),), dtype
    )


def test_a_mask_of_equal_labels_is_the_labels() -> None:
    x, labels = features(20, 2, 8), classes(20, 4)
    equal = labels[:, None] == labels
    for mask in (equal, equal.long(), equal.half()):
        torch.testing.assert_close(sup_con(x, mask=mask), sup_con(x, labels), rtol=1e-5, atol=1e-5)


def test_without_labels_it_is_nt_xent() -> None:
    x = rows(60, 8).view(20, 3, 8)
    ours = sup_con(x, temperature=0.3, base_temperature=None, normalize=True, reduction="none")
    theirs = nt_xent(x[:, 0], x[:, 1], 0.3, extra_views=[x[:, 2]], reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_further_dimensions_are_flattened_and_one_view_may_go_unnamed() -> None:
    x, labels = features(12, 2, 8), classes(12, 3)
    assert torch.equal(sup_con(x.reshape(12, 2, 2, 4), labels), sup_con(x, labels))
    assert torch.equal(sup_con(x[:, 0], labels), sup_con(x[:, :1], labels))
    assert sup_con(x, labels, reduction="none").shape == (2, 12)
    assert sup_con(x, labels, contrast_mode="one", reduction="none").shape == (12,)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_takes_the_place_of_pytorch_metric_learnings(temperature: float) -> None:
    z, labels = rows(40, 10), classes(40, 12)
    labels[0] = 99  # an anchor without positives
    peer = MetricLearningSupConLoss(temperature)
    assert_like_peer(
        lambda x: sup_con(x, labels, None, temperature, None, normalize=True, without_positive="skip"),
        lambda x: peer(x, labels),
        (z,),
    )


def test_takes_the_place_of_solo_learns() -> None:
    """−mean log(Σ_pos / (Σ_pos + Σ_neg)) of normalised rows, positives by equal indexes."""
    z, indexes = rows(24, 7), classes(12, 6).repeat(2)

    def solo(x, temperature=0.2):
        u = F.normalize(x, dim=1)
        e = (u @ u.T / temperature).exp()
        equal = indexes[:, None] == indexes
        positive = (e * (equal & ~torch.eye(24, dtype=torch.bool))).sum(1)
        return -(positive / (positive + (e * ~equal).sum(1))).log().mean()

    assert_like_peer(lambda x: sup_con(x, indexes, None, 0.2, None, variant="sum", normalize=True), solo, (z,))


def test_anchors_without_positives() -> None:
    x, labels = features(6, 1, 4), torch.tensor([0, 0, 1, 2, 2, 3])
    each = sup_con(x, labels, reduction="none")
    assert (each == 0).tolist() == [False, False, True, False, False, True]
    torch.testing.assert_close(sup_con(x, labels), each.mean())
    torch.testing.assert_close(sup_con(x, labels, without_positive="skip"), each.sum() / 4)
    weight = torch.rand(6)
    keep = weight * (each != 0)
    torch.testing.assert_close(
        sup_con(x, labels, without_positive="skip", weight=weight), (keep * each).sum() / keep.sum()
    )
    for how in ("zero", "skip"):
        z = x.clone().requires_grad_()
        loss = sup_con(z, torch.arange(6), without_positive=how)
        loss.backward()
        assert loss == 0 and (z.grad == 0).all()


@pytest.mark.parametrize("kind", ["none", "labels", "mask"])
@pytest.mark.parametrize("how", ["zero", "skip"])
def test_not_a_number_comes_out(kind: str, how: str) -> None:
    given = {"none": {}, "labels": {"labels": torch.arange(6)}, "mask": {"mask": torch.zeros(6, 6)}}[kind]
    for bad in (torch.nan, torch.inf):
        x = features(6, 1, 4)
        x[2, 0, 1] = bad
        assert sup_con(x, without_positive=how, **given).isnan()


def test_one_sample_has_no_negatives() -> None:
    for views in (2, 3):
        x = features(1, views, 3).requires_grad_()
        loss = sup_con(x, variant="sum")
        loss.backward()
        assert loss == 0 and (x.grad == 0).all()


def test_the_small_loss_of_a_well_trained_batch_keeps_its_digits() -> None:
    """Two views that agree among orthogonal samples: 46·e^(−1/τ), 1e-7 at τ = 0.05. A logit rounds by 1e-6."""
    basis = torch.linalg.qr(rows(24, 24)).Q
    x = basis[:, None].expand(24, 2, 24)
    want = eager(x.double(), 0.05, None).mean()
    assert want < 2e-7
    for labels in (None, torch.arange(24)):
        loss = sup_con(x, labels, temperature=0.05, base_temperature=None)
        torch.testing.assert_close(loss.double(), want, rtol=1e-4, atol=0)


def test_weights_smoothing_debiasing_and_metrics() -> None:
    x, labels, weight = features(15, 2, 6), classes(15, 4), torch.rand(15)
    temperature, epsilon, share = 0.3, 0.2, 0.05
    z = x.double().transpose(0, 1).reshape(30, 6)
    t = z @ z.T / temperature
    other = ~torch.eye(30, dtype=torch.bool)
    equal = (labels[:, None] == labels).repeat(2, 2)
    same, negative = equal & other, ~equal
    common = {"labels": labels, "temperature": temperature, "base_temperature": None}

    each = eager(x.double(), temperature, None, labels)
    ours = sup_con(x, weight=weight, **common)
    torch.testing.assert_close(ours.double(), (each * weight).sum() / (2 * weight.double().sum()), rtol=1e-6, atol=0)

    log_share = t - t.masked_fill(~other, -torch.inf).logsumexp(1, keepdim=True)
    target = (1 - epsilon) * same / same.sum(1, keepdim=True) + epsilon * other / 29
    ours = sup_con(x, label_smoothing=epsilon, reduction="none", **common)
    torch.testing.assert_close(ours.double().flatten(), -(target * log_share).sum(1), rtol=1e-6, atol=1e-6)

    e, number = t.exp(), negative.sum(1)
    taken = share * number * (e * same).sum(1) / same.sum(1)
    rest = (((e * negative).sum(1) - taken) / (1 - share)).clamp_min(number * torch.tensor(-1 / temperature).exp())
    want = -((same * t).sum(1) / same.sum(1) - (rest + (e * same).sum(1)).log())
    ours = sup_con(x, debias=share, reduction="none", **common)
    torch.testing.assert_close(ours.double().flatten(), want, rtol=1e-6, atol=1e-6)

    for mode in ("all", "one"):
        anchors = 30 if mode == "all" else 15
        loss, metrics = sup_con(x, contrast_mode=mode, return_metrics=True, **common)
        assert torch.equal(loss, sup_con(x, contrast_mode=mode, **common))
        s, p, n = (y[:anchors] for y in (t * temperature, same, negative))
        best = s.masked_fill(~other[:anchors], -torch.inf).argmax(1)
        torch.testing.assert_close(metrics.accuracy, p.gather(1, best[:, None]).float().mean())
        torch.testing.assert_close(metrics.positive.double(), s[p].mean(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(metrics.negative.double(), s[n].mean(), rtol=1e-5, atol=1e-7)
        lse = t[:anchors].masked_fill(~other[:anchors], -torch.inf).logsumexp(1)
        torch.testing.assert_close(metrics.lse.double().flatten(), lse, rtol=1e-6, atol=1e-6)
        mask = labels[:, None] == labels
        by_mask = sup_con(x, None, mask, temperature, None, mode, return_metrics=True)[1]
        for a, b in zip(by_mask, metrics, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 12), st.integers(1, 3), st.integers(0, 2**31), st.floats(0.05, 2))
def test_names_and_order_do_not_matter_and_in_is_below_out(
    samples: int, views: int, seed: int, temperature: float
) -> None:
    x, labels = features(samples, views, 5, seed), classes(samples, 4, seed)
    out, inside = (sup_con(x, labels, temperature=temperature, variant=v, reduction="none") for v in ("out", "in"))
    assert (inside >= -1e-5).all() and (inside <= out + 1e-4 / temperature).all()  # Jensen
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    moved = sup_con(x[order], 7 - 3 * labels[order], temperature=temperature, reduction="none")
    torch.testing.assert_close(moved.view(-1, samples), out.view(-1, samples)[:, order], rtol=1e-4, atol=1e-4)


X = torch.randn(4, 2, 3)
L = torch.tensor([0, 0, 1, 1])
BAD = {
    "no tensor": (([1.0],), {}, TypeError, r"features must be a Tensor \[B, V, D\]; got list"),
    "one dimension": ((X[0, 0],), {}, ValueError, r"features must have shape \[B, V, D\]; got \[3\]"),
    "integers": ((X.long(),), {}, TypeError, "features must be float32.*got torch.int64"),
    "empty": ((X[:0],), {}, ValueError, "features must not be empty"),
    "one row": ((X[:1, :1],), {}, ValueError, r"features must have two rows or more; got shape \[1, 3\]"),
    "labels length": ((X, L[:3]), {}, ValueError, r"labels must have shape \[4\]; got \[3\]"),
    "labels float": ((X, L.float()), {}, TypeError, "labels must be integers; got torch.float32"),
    "labels list": ((X, [0, 0, 1, 1]), {}, TypeError, "labels must be an integer Tensor"),
    "labels device": ((X, L.to("meta")), {}, ValueError, "labels must be on features's device cpu; got meta"),
    "mask shape": ((X, None, torch.ones(8, 8)), {}, ValueError, r"mask must have shape \[4, 4\]; got \[8, 8\]"),
    "mask list": ((X, None, [[1]]), {}, TypeError, r"mask must be a Tensor \[4, 4\]; got list"),
    "mask complex": ((X, None, torch.ones(4, 4) * 1j), {}, TypeError, "mask must be bool or real numbers"),
    "mask device": (
        (X, None, torch.ones(4, 4, device="meta")),
        {},
        ValueError,
        "mask must be on features's device cpu",
    ),
    "both": ((X, L, torch.ones(4, 4)), {}, ValueError, "labels and mask must not both be given"),
    "mask inside": ((X, None, torch.ones(4, 4)), {"variant": "in"}, ValueError, 'mask goes with variant "out"'),
    "mask debiased": ((X, None, torch.ones(4, 4)), {"debias": 0.1}, ValueError, "mask goes with .*without debias"),
    "smooth inside": ((X, L), {"variant": "in", "label_smoothing": 0.1}, ValueError, "label_smoothing goes with"),
    "temperature": ((X, L, None, 0.0), {}, ValueError, "temperature must be 1e-8 to 1e30"),
    "base": ((X, L, None, 0.1, 0.0), {}, ValueError, "base_temperature must be"),
    "mode": ((X, L), {"contrast_mode": "two"}, ValueError, "contrast_mode must be one of all, one; got 'two'"),
    "variant": ((X, L), {"variant": "up"}, ValueError, "variant must be one of out, in, sum; got 'up'"),
    "lonely": ((X, L), {"without_positive": "drop"}, ValueError, "without_positive must be one of zero, skip"),
    "weight": ((X, L), {"weight": torch.ones(8)}, ValueError, r"weight must have shape \[4\]; got \[8\]"),
    "reduction": ((X, L), {"reduction": "max"}, ValueError, "reduction must be one of"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, keywords, error, message = case
    with pytest.raises(error, match=message):
        sup_con(*arguments, **keywords)


@pytest.mark.parametrize("mode", ["all", "one"])
def test_a_row_that_is_not_a_number_leaves_no_metrics(mode: str) -> None:
    z, labels = rows(8, 5)[:, None].repeat(1, 2, 1), torch.arange(8) // 2
    z[3, 0, 1] = torch.nan
    for keywords in ({"labels": labels}, {"mask": labels[:, None] == labels}):
        _, metrics = sup_con(z, **keywords, contrast_mode=mode, return_metrics=True)
        assert all(x.isnan() for x in metrics[:3]) and metrics.lse.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_positive_as_near_as_a_negative_is_a_hit(dtype: torch.dtype) -> None:
    z = F.normalize(rows(16, 24), dim=1).to(dtype).repeat(2, 1)
    # Views of a sample, and of another that is the same in all but the label.
    with pyssl_fast.use_backend("auto"):
        _, metrics = sup_con(torch.stack((z, z), 1), torch.arange(32), return_metrics=True)
        assert metrics.accuracy == 1
        _, metrics = sup_con(torch.stack((z, z.roll(1, 0)), 1), torch.arange(32), return_metrics=True)
        assert metrics.accuracy < 1


def test_labels_may_be_a_column_or_bool() -> None:
    z, labels = rows(8, 5), torch.arange(8) % 2
    want = sup_con(z, labels)
    assert torch.equal(sup_con(z, labels[:, None]), want) and torch.equal(sup_con(z, labels == 1), want)
