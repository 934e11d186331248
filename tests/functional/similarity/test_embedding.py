"""pyssl_fast.functional.embedding_info_nce; what it shares with others is in test_softmax.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyssl_fast
from pyssl_fast.functional import embedding_info_nce, info_nce
from pyssl_fast.losses import EmbeddingInfoNCELoss

GENERATOR = torch.Generator().manual_seed(0)
TOPICS = torch.randn(7, 8, generator=GENERATOR, dtype=torch.float64)


def texts(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    q, d = (TOPICS + 0.8 * torch.randn(7, 8, generator=generator) for _ in range(2))
    hard = TOPICS[:, None] + 1.2 * torch.randn(7, 3, 8, generator=generator)
    return [x.to(dtype).requires_grad_() for x in (q, d, hard)]


def in_full(q: Tensor, d: Tensor, hard: Tensor | None, temperature: float, qq: bool, dd: bool, margin: float) -> Tensor:
    """Zhang et al. 2025, eq. 1, in exponentials; ids by `same`."""
    q, d = F.normalize(q, dim=1), F.normalize(d, dim=1)
    positive = (q * d).sum(1)
    away = ~torch.eye(len(q), dtype=torch.bool)
    parts = [(q @ d.T, away)]
    if qq:
        parts.append((q @ q.T, away))
    if dd:
        parts.append((d @ d.T, away))
    if hard is not None:
        s = torch.einsum("bd,bkd->bk", q, F.normalize(hard, dim=2))
        parts.append((s, torch.ones_like(s, dtype=torch.bool)))
    z = (positive / temperature).exp()
    for s, keep in parts:
        keep = keep & (s <= positive[:, None].detach() + margin)
        z = z + torch.where(keep, (s / temperature).exp(), 0).sum(1)
    return z.log() - positive / temperature


@pytest.mark.parametrize("margin", [None, 0.1, -0.2])
@pytest.mark.parametrize("qq", [False, True])
@pytest.mark.parametrize("dd", [False, True])
@pytest.mark.parametrize("with_hard", [False, True])
def test_value_and_gradients_are_the_papers(margin: float | None, qq: bool, dd: bool, with_hard: bool) -> None:
    inputs = texts() if with_hard else texts()[:2]
    hard = inputs[2] if with_hard else None
    ours = embedding_info_nce(
        *inputs, temperature=0.3, query_query=qq, document_document=dd, margin=margin, reduction="none"
    )
    truth = in_full(*inputs[:2], hard, 0.3, qq, dd, 9.0 if margin is None else margin)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)
    weight = torch.linspace(-1, 2, 7, dtype=torch.float64)
    for mine, true in zip(
        torch.autograd.grad((weight * ours).sum(), inputs),
        torch.autograd.grad((weight * truth).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-12)


def test_without_further_negatives_it_is_info_nce() -> None:
    q, d, _ = texts()
    assert torch.equal(embedding_info_nce(q, d), info_nce(q, d, temperature=0.05))


@pytest.mark.parametrize("margin", [None, 5.0])
def test_equal_ids_are_no_negatives(margin: float | None) -> None:
    q, d, _ = texts()
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 0])
    options = {"query_query": True, "document_document": True, "margin": margin, "reduction": "none"}
    rows = embedding_info_nce(q, d, ids=ids, **options)
    alone = embedding_info_nce(q[:6], d[:6], **options)
    torch.testing.assert_close(rows[0], alone[0])
    assert rows[1] > alone[1]


def test_metrics_leave_out_what_the_margin_does() -> None:
    inputs = texts()
    _, metrics = embedding_info_nce(*inputs, query_query=True, margin=-0.2, return_metrics=True)
    assert metrics.accuracy == 1  # every negative is less similar by 0.2
    _, metrics = embedding_info_nce(*inputs, query_query=True, return_metrics=True)
    assert metrics.accuracy < 1


def test_matryoshka_prefixes_are_summed() -> None:
    inputs = texts()
    dims, weights = [8, 3, 1], [1.0, 0.5, 2.0]
    parts = [embedding_info_nce(*(x[..., :dim] for x in inputs), query_query=True, return_metrics=True) for dim in dims]
    loss, metrics = embedding_info_nce(
        *inputs, query_query=True, matryoshka_dims=dims, matryoshka_weights=weights, return_metrics=True
    )
    torch.testing.assert_close(loss, sum(w * part for w, (part, _) in zip(weights, parts, strict=True)))
    torch.testing.assert_close(metrics.lse, parts[0][1].lse)
    even = embedding_info_nce(*inputs, query_query=True, matryoshka_dims=(3, 8, 1))
    torch.testing.assert_close(even, sum(part for part, _ in parts))
    gradient = torch.autograd.grad(loss, inputs)
    assert all((x[..., 3:] != 0).any() for x in gradient)


def test_compiles_with_a_margin_and_prefixes() -> None:
    torch.compiler.reset()
    options = {"query_query": True, "margin": 0.1, "matryoshka_dims": (8, 4)}
    compiled = torch.compile(embedding_info_nce, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (7, 5):
        inputs = [x[:rows] for x in texts(torch.float32)]
        torch.testing.assert_close(compiled(*inputs, **options), embedding_info_nce(*inputs, **options))


X, H = torch.randn(4, 3), torch.randn(4, 2, 3)
BAD = {
    "query": ((X[0], X), {}, ValueError, r"query must have shape \[N, D\]; got \[3\]"),
    "document": ((X, X[:3]), {}, ValueError, r"document must have query's shape \[4, 3\]; got \[3, 3\]"),
    "hard dimensions": ((X, X, X), {}, ValueError, r"hard_negatives must have shape \[B, K, D\]; got \[4, 3\]"),
    "hard rows": ((X, X, H[:2]), {}, ValueError, r"hard_negatives must be \[4, K, D\]; got \[2, 2, 3\]"),
    "hard length": ((X, X, H[..., :2]), {}, ValueError, "hard_negatives must have rows of query's length 3"),
    "hard dtype": ((X, X, H.double()), {}, TypeError, "hard_negatives must have query's dtype torch.float32"),
    "margin": ((X, X), {"margin": "wide"}, TypeError, "margin must be a number"),
    "margin NaN": ((X, X), {"margin": float("nan")}, ValueError, "margin must be .* got nan"),
    "margin, smoothing": (
        (X, X),
        {"margin": 0.1, "label_smoothing": 0.1},
        ValueError,
        "label_smoothing and margin do not combine",
    ),
    "margin, temperature": (
        (X, X, None, -0.1),
        {"margin": 0.1},
        ValueError,
        "margin needs a temperature above 0; got -0.1",
    ),
    "no prefixes": ((X, X), {"matryoshka_dims": []}, ValueError, "matryoshka_dims must not be empty"),
    "long prefix": ((X, X), {"matryoshka_dims": [4]}, ValueError, "matryoshka_dims must be 3 at most.* got 4"),
    "prefix 0": ((X, X), {"matryoshka_dims": [0]}, ValueError, "matryoshka_dims must be 1 or more; got 0"),
    "half a prefix": ((X, X), {"matryoshka_dims": [1.5]}, TypeError, "matryoshka_dims must be a whole number"),
    "weights alone": ((X, X), {"matryoshka_weights": [1.0]}, ValueError, "matryoshka_weights need matryoshka_dims"),
    "weights": (
        (X, X),
        {"matryoshka_dims": [1, 2], "matryoshka_weights": [1.0]},
        ValueError,
        "matryoshka_weights must be 2 numbers, one for each prefix; got 1",
    ),
    "temperature": ((X, X, None, 0), {}, ValueError, "temperature must be 1e-8"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, keywords, error, message = case
    with pytest.raises(error, match=message):
        embedding_info_nce(*arguments, **keywords)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_documents_twice_in_a_batch_stay_negatives_at_margin_0(backend: str) -> None:
    generator = torch.Generator().manual_seed(2)
    q, d = torch.randn(2, 48, 40, generator=generator)
    # Values that bfloat16 holds: every dtype sees the same numbers. Hard negative 0 is the row's own document.
    q, d = q.bfloat16().repeat(2, 1), (q + 0.3 * d).bfloat16().repeat(2, 1)
    hard = torch.stack((d, d.flip(0)), 1)
    options = {"margin": 0.0, "temperature": 0.5, "reduction": "none"}
    with pyssl_fast.use_backend(backend):
        truth = embedding_info_nce(q.double(), d.double(), hard.double(), **options)
        free = embedding_info_nce(q.double(), d.double(), hard.double(), **{**options, "margin": None})
        torch.testing.assert_close(truth, free)  # what is most similar is a duplicate
        for dtype in (torch.float32, torch.bfloat16):
            loss = embedding_info_nce(q.to(dtype), d.to(dtype), hard.to(dtype), **options)
            torch.testing.assert_close(loss, truth.float(), rtol=1e-2, atol=0)  # one negative less is 0.05 and more
        with torch.autocast("cpu", torch.bfloat16):
            loss = embedding_info_nce(q.float(), d.float(), hard.float(), **options)
        torch.testing.assert_close(loss, truth.float(), rtol=1e-2, atol=0)


def test_hard_negatives_of_the_same_id_are_none() -> None:
    q, d, hard = texts()
    ids, hard_ids = torch.arange(7), torch.arange(7)[:, None] + torch.tensor([1, 0, 5])
    for margin in (None, 0.1):
        options = {"margin": margin, "reduction": "none", "ids": ids}
        rows = embedding_info_nce(q, d, hard, hard_negative_ids=hard_ids, **options)
        torch.testing.assert_close(rows, embedding_info_nce(q, d, hard[:, [0, 2]], **options))
    module = EmbeddingInfoNCELoss(reduction="none")
    want = embedding_info_nce(q, d, hard[:, [0, 2]], ids=ids, reduction="none")
    torch.testing.assert_close(module(q, d, hard, ids=ids, hard_negative_ids=hard_ids), want)
    for keywords in ({}, {"ids": ids}):
        with pytest.raises(ValueError, match="hard_negative_ids need ids and hard_negatives"):
            embedding_info_nce(q, d, None if keywords else hard, hard_negative_ids=hard_ids, **keywords)
    with pytest.raises(ValueError, match=r"hard_negative_ids must have shape \[7, 3\]; got \[7, 2\]"):
        embedding_info_nce(q, d, hard, ids=ids, hard_negative_ids=hard_ids[:, :2])
