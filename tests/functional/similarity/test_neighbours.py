from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pyssl_fast
from pyssl_fast.functional import mean_shift, nearest_neighbours, nnclr
from tests.functional.similarity.peers import assert_like_peer, classes, rows


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with pyssl_fast.use_backend(request.param):
        yield


# ---- nearest_neighbours ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "keys", "count"), [((1, 3), 1, 1), ((7, 5), 40, 5), ((33, 20), 70, 1), ((9, 4), 9, 9)]
)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_most_similar_first(shape: tuple[int, int], keys: int, count: int, normalize: bool) -> None:
    q, k = rows(*shape, scale=2).requires_grad_(), rows(keys, shape[1], 1).requires_grad_()
    similarity, index = nearest_neighbours(q, k, count, normalize=normalize)
    s = F.normalize(q) @ F.normalize(k).T if normalize else q @ k.T
    want, where = s.detach().topk(count)
    torch.testing.assert_close(similarity, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(index, where)
    assert not similarity.requires_grad


def test_without_keys_the_other_rows() -> None:
    q = rows(20, 6)
    _, index = nearest_neighbours(q, count=3)
    u = F.normalize(q)
    assert torch.equal(index, (u @ u.T).fill_diagonal_(-2).topk(3).indices)


def test_keys_of_another_dtype_and_layout() -> None:
    q, k = rows(6, 8), rows(30, 8, 1)
    _, want = nearest_neighbours(q.half(), k.half())
    _, index = nearest_neighbours(q.half(), k.half().float())
    _, strided = nearest_neighbours(q.half().T.contiguous().T, k.half().repeat(1, 2)[:, :8])
    assert torch.equal(index, want) and torch.equal(strided, want)


# ---- NNCLR -----------------------------------------------------------------------------------------------------------


def eager_nnclr(n, p, temperature, symmetric=False):
    """[N] or [2, N]; one direction is solo-learn's."""
    t = F.normalize(n) @ F.normalize(p).T / temperature
    own = torch.arange(len(n))
    one = F.cross_entropy(t, own, reduction="none")
    return torch.stack((one, F.cross_entropy(t.T, own, reduction="none"))) if symmetric else one


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("shape", "temperature"), [((1, 2), 0.1), ((33, 20), 0.1), ((20, 65), 0.5)])
def test_nnclr_is_the_papers(shape: tuple[int, int], temperature: float, symmetric: bool) -> None:
    inputs = (rows(*shape), rows(*shape, seed=1), torch.tensor(temperature))
    for reduction in ("mean", "none"):
        assert_like_peer(
            lambda *x, r=reduction: nnclr(*x, symmetric=symmetric, reduction=r),
            lambda *x, r=reduction: eager_nnclr(*x, symmetric) if r == "none" else eager_nnclr(*x, symmetric).mean(),
            inputs,
        )


def test_nnclr_takes_the_options_of_softmax_losses() -> None:
    n, p, weight, ids = rows(12, 6), rows(12, 6, 1), torch.rand(12), classes(12, 8)
    each = eager_nnclr(n, p, 0.2)
    torch.testing.assert_close(nnclr(n, p, 0.2, weight=weight), (weight * each).sum() / weight.sum())
    t = F.normalize(n) @ F.normalize(p).T / 0.2
    away = (ids[:, None] == ids) & ~torch.eye(12, dtype=torch.bool)
    masked = F.cross_entropy(t.masked_fill(away, -torch.inf), torch.arange(12))
    torch.testing.assert_close(nnclr(n, p, 0.2, ids=ids), masked)
    smooth = F.cross_entropy(t, torch.arange(12), label_smoothing=0.1)
    torch.testing.assert_close(nnclr(n, p, 0.2, label_smoothing=0.1), smooth)
    _, metrics = nnclr(n, p, 0.2, return_metrics=True)
    torch.testing.assert_close(metrics.accuracy, (t.argmax(1) == torch.arange(12)).float().mean())
    assert nnclr(n, p, 0.2, debias=0.01) < each.mean()


# ---- Mean Shift ------------------------------------------------------------------------------------------------------


def eager_mean_shift(q, t, bank, count):
    """[N] distances, and the nearest rows' index, as the authors' code orders them."""
    q, t, bank = F.normalize(q), F.normalize(t.detach()), F.normalize(bank.detach())
    index = (2 - 2 * t @ bank.T).topk(count, largest=False).indices
    return (2 - 2 * q @ bank.T).gather(1, index).mean(1), index


@pytest.mark.parametrize(("count", "keys"), [(1, 1), (5, 40), (40, 40)])
def test_mean_shift_is_the_papers(count: int, keys: int) -> None:
    q, t, bank = rows(20, 6), rows(20, 6, 1), rows(keys, 6, 2)
    assert_like_peer(
        lambda x: mean_shift(x, t.to(x.dtype), bank.to(x.dtype), count),
        lambda x: eager_mean_shift(x, t.to(x.dtype), bank.to(x.dtype), count)[0].mean(),
        (q,),
    )


def test_mean_shift_options() -> None:
    q, t, bank, weight = rows(20, 6), rows(20, 6, 1), rows(40, 6, 2), torch.rand(20)
    labels, bank_labels = classes(20, 3), classes(40, 3, 1)
    each, index = eager_mean_shift(q, t, bank, 4)
    torch.testing.assert_close(mean_shift(q, t, bank, 4, reduction="none"), each)
    torch.testing.assert_close(mean_shift(q, t, bank, 4, weight=weight), (weight * each).sum() / weight.sum())
    loss, purity = mean_shift(
        q, t, F.normalize(bank), 4, normalize_bank=False, labels=labels, bank_labels=bank_labels, return_metrics=True
    )
    torch.testing.assert_close(loss, each.mean())
    torch.testing.assert_close(purity, (bank_labels[index] == labels[:, None]).float().mean())


def test_mean_shift_moves_the_query_alone() -> None:
    q, t, bank = (rows(8, 4, seed).requires_grad_() for seed in range(3))
    mean_shift(q, t, bank, 3).backward()
    assert q.grad is not None and t.grad is None and bank.grad is None


def test_a_target_that_is_not_a_number_gives_none() -> None:
    for bad in (torch.nan, torch.inf):
        t = rows(8, 4, 1)
        t[2, 1] = bad
        each = mean_shift(rows(8, 4), t, rows(9, 4, 2), 2, reduction="none")
        assert each.isnan().nonzero().tolist() == [[2]]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 6), st.integers(0, 2**31), st.data())
def test_bounds_and_the_order_of_the_bank(samples: int, keys: int, dim: int, seed: int, data) -> None:
    count = data.draw(st.integers(1, keys))
    q, bank = rows(samples, dim, seed), rows(keys, dim, seed + 1)
    loss = mean_shift(q, q, bank, count, reduction="none")
    assert (loss >= 0).all() and (loss <= 4 + 1e-5).all()
    order = torch.randperm(keys, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(mean_shift(q, q, bank[order], count, reduction="none"), loss, rtol=1e-4, atol=1e-4)
    similarity, _ = nearest_neighbours(q, bank, count)
    torch.testing.assert_close(loss, (2 - 2 * similarity).mean(1), rtol=1e-4, atol=1e-4)


Z, B = torch.randn(4, 3), torch.randn(6, 3)
L = torch.arange(4)
BAD = {
    "no tensor": (nearest_neighbours, ([1.0], B), {}, TypeError, r"query must be a Tensor \[N, D\]; got list"),
    "columns": (nearest_neighbours, (Z, B[:, :2]), {}, ValueError, "keys must have rows of query's length 3"),
    "device": (nearest_neighbours, (Z, B.to("meta")), {}, ValueError, "keys must be on query's device cpu; got meta"),
    "count 0": (nearest_neighbours, (Z, B, 0), {}, ValueError, "count must be 1 or more; got 0"),
    "count": (nearest_neighbours, (Z, B, 7), {}, ValueError, "count must be 6 at most, the number of keys; got 7"),
    "count alone": (
        nearest_neighbours,
        (Z, None, 4),
        {},
        ValueError,
        "count must be 3 at most, the number of other rows",
    ),
    "count float": (nearest_neighbours, (Z, B, 2.0), {}, TypeError, "count must be a whole number; got float"),
    "nnclr shapes": (nnclr, (Z, Z[:3]), {}, ValueError, r"predictions must have neighbours's shape \[4, 3\]"),
    "nnclr dtypes": (nnclr, (Z, Z.double()), {}, TypeError, "predictions must have neighbours's dtype"),
    "nnclr temperature": (nnclr, (Z, Z, 0.0), {}, ValueError, "temperature must be 1e-8 to 1e30"),
    "nnclr ids": (nnclr, (Z, Z), {"ids": L[:3]}, ValueError, r"ids must have shape \[4\]; got \[3\]"),
    "nnclr smoothing": (nnclr, (Z, Z), {"label_smoothing": 2}, ValueError, "label_smoothing must be 0 to 1; got 2"),
    "shift target": (mean_shift, (Z, Z[:3], B), {}, ValueError, r"target must have query's shape \[4, 3\]"),
    "shift bank": (mean_shift, (Z, Z, B[:, :2]), {}, ValueError, "bank must have rows of query's length 3"),
    "shift count": (mean_shift, (Z, Z, B, 7), {}, ValueError, "count must be 6 at most, the number of keys; got 7"),
    "shift labels": (mean_shift, (Z, Z, B), {"labels": L[:2]}, ValueError, r"labels must have shape \[4\]; got \[2\]"),
    "shift floats": (
        mean_shift,
        (Z, Z, B),
        {"labels": Z[:, 0]},
        TypeError,
        "labels must be integers; got torch.float32",
    ),
    "shift metrics": (mean_shift, (Z, Z, B), {"return_metrics": True}, ValueError, "return_metrics needs labels and"),
    "shift weight": (mean_shift, (Z, Z, B), {"weight": torch.ones(6)}, ValueError, r"weight must have shape \[4\]"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    function, arguments, keywords, error, message = case
    with pytest.raises(error, match=message):
        function(*arguments, **keywords)
