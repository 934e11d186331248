from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners

import pyssl_fast
from pyssl_fast.functional import triplet_margin, triplet_margin_in_batch
from pyssl_fast.losses import TripletMarginLoss
from tests.functional.similarity.peers import assert_like_peer, classes, rows


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with pyssl_fast.use_backend(request.param):
        yield


def terms(x, labels, margin, mining, euclidean=True, normalize=True):
    """Every triplet of the batch by itself: the list of its terms, and of their anchors."""
    u = F.normalize(x) if normalize else x
    d = (u[:, None] - u[None]).norm(dim=2) if euclidean else 1 - u @ u.T
    equal = labels[:, None] == labels
    found, anchors = [], []
    for a in range(len(x)):
        positive = [j for j in range(len(x)) if equal[a, j] and j != a]
        negative = [j for j in range(len(x)) if not equal[a, j]]
        if mining == "hard" and positive and negative:
            positive = [max(positive, key=lambda j, a=a: float(d[a, j].detach()))]
            negative = [min(negative, key=lambda j, a=a: float(d[a, j].detach()))]
        for p in positive:
            for n in negative:
                if mining != "semi-hard" or d[a, p] < d[a, n]:
                    found.append((d[a, p] - d[a, n] + margin).clamp_min(0))
                    anchors.append(a)
    return (torch.stack(found) if found else x.new_zeros(0) + 0 * x.sum()), anchors


@pytest.mark.parametrize("settings_", [{}, {"margin": 0.3, "p": 1.0}, {"swap": True}, {"eps": 1e-3, "p": 3.0}], ids=str)
def test_given_triplets_are_torchs(settings_: dict) -> None:
    inputs = tuple(rows(20, 7, seed) for seed in range(3))
    for reduction in ("mean", "sum", "none"):
        assert_like_peer(
            lambda *x, r=reduction: triplet_margin(*x, **settings_, reduction=r),
            lambda *x, r=reduction: F.triplet_margin_loss(*x, **settings_, reduction=r),
            inputs,
        )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("mining", ["all", "hard", "semi-hard"])
@pytest.mark.parametrize("margin", [0.05, 0.5])
def test_value_and_gradients_of_every_triplet(margin: float, mining: str, distance: str, normalize: bool) -> None:
    x, labels = rows(24, 6), classes(24, 6)
    labels[3] = 50  # an anchor without positives

    def peer(z):
        term, _ = terms(z, labels, margin, mining, distance == "euclidean", normalize)
        return term.sum() / (term > 0).sum().clamp_min(1)

    assert_like_peer(
        lambda z: triplet_margin_in_batch(z, labels, margin, mining=mining, distance=distance, normalize=normalize),
        peer,
        (x,),
        what=f"{mining} {distance}",
    )


@pytest.mark.parametrize("reduction", ["nonzero", "mean", "sum", "none"])
@pytest.mark.parametrize("mining", ["all", "hard", "semi-hard"])
def test_reductions(mining: str, reduction: str) -> None:
    x, labels = rows(20, 4), classes(20, 5)

    def peer(z):
        term, anchors = terms(z, labels, 0.2, mining)
        each = z.new_zeros(20).index_add(0, torch.tensor(anchors), term)
        nonzero = term.sum() / (term > 0).sum()
        mean = nonzero if mining == "semi-hard" else term.mean()
        return {"nonzero": nonzero, "mean": mean, "sum": term.sum(), "none": each}[reduction]

    assert_like_peer(lambda z: triplet_margin_in_batch(z, labels, 0.2, mining=mining, reduction=reduction), peer, (x,))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("mining", ["all", "hard", "semi-hard"])
def test_takes_the_place_of_pytorch_metric_learnings(mining: str, distance: str) -> None:
    x, labels, margin = rows(40, 10), classes(40, 7), 0.1
    sign = distances.LpDistance() if distance == "euclidean" else distances.CosineSimilarity()
    loss = losses.TripletMarginLoss(margin, distance=sign)
    miner = {
        "all": None,
        "hard": miners.BatchHardMiner(distance=sign),
        "semi-hard": miners.TripletMarginMiner(margin, "semihard", distance=sign),
    }[mining]
    assert_like_peer(
        lambda z: triplet_margin_in_batch(z, labels, margin, mining=mining, distance=distance),
        lambda z: loss(z, labels, None if miner is None else miner(z.detach(), labels)),
        (x,),
    )


@pytest.mark.parametrize("mining", ["all", "hard", "semi-hard"])
def test_without_a_triplet_the_loss_is_zero(mining: str) -> None:
    for labels in (torch.zeros(5, dtype=torch.int32), torch.arange(5)):
        x = rows(5, 3).requires_grad_()
        for reduction in ("nonzero", "mean", "sum"):
            loss = triplet_margin_in_batch(x, labels, mining=mining, reduction=reduction)
            assert loss == 0
        loss.backward()
        assert (x.grad == 0).all()
    assert triplet_margin_in_batch(rows(1, 3), torch.tensor([4]), mining=mining) == 0


@pytest.mark.parametrize("mining", ["all", "hard", "semi-hard"])
def test_rows_that_coincide_have_a_finite_gradient(mining: str) -> None:
    x = rows(3, 4).repeat(2, 1).requires_grad_()
    triplet_margin_in_batch(x, torch.tensor([0, 1, 2, 0, 1, 1]), 0.7, mining=mining).backward()
    assert x.grad.isfinite().all() and (x.grad != 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mining", ["all", "hard", "semi-hard"])
def test_half_precision(mining: str, dtype: torch.dtype) -> None:
    """Beside the same rows in float64: which triplets count may differ by one where a term is near 0."""
    x, labels = (3 * torch.eye(12).repeat(2, 1) + rows(24, 12)).to(dtype), torch.arange(12).repeat(2) // 2
    ours = triplet_margin_in_batch(x, labels, 0.5, mining=mining, reduction="sum")
    with pyssl_fast.use_backend("reference"):
        wide = triplet_margin_in_batch(x.double(), labels, 0.5, mining=mining, reduction="sum")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), wide, rtol=0.05, atol=0)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 16), st.integers(1, 5), st.integers(0, 2**31), st.floats(0, 1), st.sampled_from(["all", "hard"]))
def test_order_and_names_do_not_matter(count: int, number: int, seed: int, margin: float, mining: str) -> None:
    x, labels = rows(count, 4, seed), classes(count, number, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    loss = triplet_margin_in_batch(x, labels, margin, mining=mining, reduction="none")
    moved = triplet_margin_in_batch(x[order], 9 - 2 * labels[order], margin, mining=mining, reduction="none")
    assert (loss >= 0).all()
    torch.testing.assert_close(moved, loss[order], rtol=1e-4, atol=1e-4)


Z, L = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
BAD = {
    "given list": (triplet_margin, (Z, [1.0], Z), {}, TypeError, r"positive must be a Tensor \[N, D\]; got list"),
    "given shapes": (triplet_margin, (Z, Z, Z[:2]), {}, ValueError, r"negative must have anchor's shape \[4, 3\]"),
    "given margin": (triplet_margin, (Z, Z, Z, 0.0), {}, ValueError, "margin must be"),
    "given p": (triplet_margin, (Z, Z, Z, 1.0, "2"), {}, TypeError, "p must be a number"),
    "given reduction": (triplet_margin, (Z, Z, Z), {"reduction": "nonzero"}, ValueError, "reduction must be one of"),
    "no labels": (
        triplet_margin_in_batch,
        (Z, None),
        {},
        TypeError,
        r"labels must be an integer Tensor \[4\]; got None",
    ),
    "labels float": (
        triplet_margin_in_batch,
        (Z, Z[:, 0]),
        {},
        TypeError,
        "labels must be integers; got torch.float32",
    ),
    "labels length": (triplet_margin_in_batch, (Z, L[:3]), {}, ValueError, r"labels must have shape \[4\]; got \[3\]"),
    "labels device": (
        triplet_margin_in_batch,
        (Z, L.to("meta")),
        {},
        ValueError,
        "labels must be on embeddings's device",
    ),
    "integers": (triplet_margin_in_batch, (Z.long(), L), {}, TypeError, "embeddings must be float32"),
    "margin": (triplet_margin_in_batch, (Z, L, float("inf")), {}, ValueError, "margin must be"),
    "margin Tensor": (triplet_margin_in_batch, (Z, L, torch.tensor(1.0)), {}, TypeError, "margin must be a number"),
    "mining": (
        triplet_margin_in_batch,
        (Z, L),
        {"mining": "easy"},
        ValueError,
        "mining must be one of all, hard, semi-",
    ),
    "distance": (triplet_margin_in_batch, (Z, L), {"distance": "l1"}, ValueError, "distance must be one of euclidean"),
    "reduction": (
        triplet_margin_in_batch,
        (Z, L),
        {"reduction": "max"},
        ValueError,
        "reduction must be one of nonzero",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    function, arguments, keywords, error, message = case
    with pytest.raises(error, match=message):
        function(*arguments, **keywords)


def test_the_largest_difference_is_torchs() -> None:
    loss = TripletMarginLoss(p=float("inf"))
    assert_like_peer(loss, torch.nn.TripletMarginLoss(p=float("inf")), (rows(9, 6), rows(9, 6, 1), rows(9, 6, 2)))


def test_two_dtypes_under_autocast_promote() -> None:
    a, p, n = rows(6, 4), rows(6, 4, 1).bfloat16(), rows(6, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = triplet_margin(a, p, n)
    assert torch.equal(found, triplet_margin(a, p.float(), n))
