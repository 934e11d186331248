"""pyssl_fast.functional.info_nce as its users call it; what it shares with others is in test_softmax.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyssl_fast.functional import info_nce
from pyssl_fast.modules import KeyQueue

Q, K = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double()


def moco(q: torch.Tensor, k: torch.Tensor, keys: torch.Tensor, temperature: float) -> torch.Tensor:
    u, v = F.normalize(q, dim=1), F.normalize(k, dim=1)
    logits = torch.cat(((u * v).sum(1, keepdim=True), u @ keys.T), 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_a_queue_may_be_overwritten_before_backward(dtype: torch.dtype, learned: bool) -> None:
    queue = KeyQueue(8, 4).to(dtype)
    old = queue.keys.clone()
    q, temperature = (
        Q.to(dtype, copy=True).requires_grad_(),
        torch.tensor(0.2, dtype=torch.float64, requires_grad=learned),
    )
    loss = info_nce(q, K.to(dtype), queue.keys, temperature, negatives_normalized=True)
    queue.update(K)
    assert not torch.equal(queue.keys, old)
    loss.backward()
    wide = q.detach().to(torch.float64, copy=True).requires_grad_()
    truth = moco(wide, K.to(dtype).double(), old.double(), 0.2)
    truth.backward()
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(loss.double(), truth, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(q.grad.double(), wide.grad, rtol=tolerance, atol=tolerance)
    assert (temperature.grad is not None) == learned


def test_keys_of_another_dtype() -> None:
    keys = F.normalize(torch.randn(6, 4), dim=1).half()
    for q in (Q.float(), Q.float().requires_grad_()):
        loss = info_nce(q, K.float(), keys, 0.3, negatives_normalized=True)
        torch.testing.assert_close(loss, moco(Q, K, keys.double(), 0.3).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradient", [False, True])
def test_normalized_negatives_are_taken_as_they_are(gradient: bool) -> None:
    keys = (3 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_(gradient)
    q = Q.clone().requires_grad_()
    ours, truth = info_nce(q, K, keys, 0.5, negatives_normalized=True), moco(q, K, keys, 0.5)
    torch.testing.assert_close(ours, truth)
    leaves = [q, keys] if gradient else [q]
    for mine, true in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(truth, leaves), strict=True):
        torch.testing.assert_close(mine, true)


def test_temperature_alone_is_learned() -> None:
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    keys = F.normalize(torch.randn(6, 4).double(), dim=1)
    (ours,) = torch.autograd.grad(info_nce(Q, K, keys, temperature), temperature)
    (truth,) = torch.autograd.grad(moco(Q, K, keys, temperature), temperature)
    torch.testing.assert_close(ours, truth)


def test_half_precision_holds_long_and_short_rows() -> None:
    # float16 has no 1e-12, and no length of 1e5.
    q = torch.tensor([[0.0, 0.0], [6e4, 6e4], [1e-4, 0.0]], dtype=torch.float16, requires_grad=True)
    loss = info_nce(q, torch.ones(3, 2).half(), torch.ones(4, 2).half(), reduction="none")
    torch.testing.assert_close(loss[:2], torch.full((2,), 5.0).log(), rtol=1e-2, atol=0)
    loss.sum().backward()
    assert q.grad[1:].isfinite().all()


def test_further_columns_of_the_queue_are_seen() -> None:
    near = info_nce(Q, K, Q[:1].clone(), 0.1, reduction="none")
    assert near[0] > 1 > near[0] - near[0].floor()
    assert info_nce(Q, K, torch.cat((Q[1:2], Q[:1])), 0.1, reduction="none")[0] > near[0]


X = torch.randn(4, 3)
BAD = {
    "query": (([1.0], X), {}, TypeError, r"query must be a Tensor \[N, D\]; got list"),
    "key": ((X, X[:3]), {}, ValueError, r"positive_key must have query's shape \[4, 3\]; got \[3, 3\]"),
    "mode": ((X, X), {"negative_mode": "all"}, ValueError, "negative_mode must be one of unpaired, paired; got 'all'"),
    "length": ((X, X, X[:, :2]), {}, ValueError, r"negative_keys must have rows of query's length 3; got \[4, 2\]"),
    "dimensions": ((X, X, X[None]), {}, ValueError, r"negative_keys must have shape \[N, D\]; got \[1, 4, 3\]"),
    "none": ((X, X, X[:0]), {}, ValueError, r"negative_keys must not be empty; got shape \[0, 3\]"),
    "device": ((X, X, X.to("meta")), {}, ValueError, "negative_keys must be on query's device cpu; got meta"),
    "gradient in another dtype": (
        (X, X, X.double().requires_grad_()),
        {},
        TypeError,
        "negative_keys must have query's dtype torch.float32; got torch.float64",
    ),
    "paired dtype": (
        (X, X, X[:, None].double()),
        {"negative_mode": "paired"},
        TypeError,
        "negative_keys must have query's dtype",
    ),
    "paired dimensions": (
        (X, X, X),
        {"negative_mode": "paired"},
        ValueError,
        r"negative_keys must have shape \[B, N, D\]; got \[4, 3\]",
    ),
    "paired rows": (
        (X, X, X[None]),
        {"negative_mode": "paired"},
        ValueError,
        r"negative_keys must be \[4, N, D\]; got \[1, 4, 3\]",
    ),
    "ids alone": (
        (X, X, X),
        {"ids": torch.arange(4)},
        ValueError,
        "ids and negative_ids must be given together",
    ),
    "negative_ids alone": ((X, X), {"negative_ids": torch.arange(4)}, ValueError, "negative_ids need negative_keys"),
    "negative_ids": (
        (X, X, X),
        {"ids": torch.arange(4), "negative_ids": torch.arange(3)},
        ValueError,
        r"negative_ids must have shape \[4\]; got \[3\]",
    ),
    "temperature": ((X, X, None, 0), {}, ValueError, "temperature must be 1e-8 to 1e30 in size; got 0"),
    "reduction": ((X, X, None, 1, "max"), {}, ValueError, "reduction must be one of none, mean, sum; got 'max'"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case) -> None:
    arguments, keywords, error, message = case
    with pytest.raises(error, match=message):
        info_nce(*arguments, **keywords)
