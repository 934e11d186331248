"""Every softmax loss beside its logits in plain view: one table that all tests of what they share run over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast.functional import (
    clip_loss,
    dcl,
    embedding_info_nce,
    hard_negative_nt_xent,
    info_nce,
    nt_xent,
)
from tests.kernels.similarity_cases import embeddings as embeddings

Logits = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Member:
    """A loss of N samples.

    call: (inputs, temperature, ids, **options) -> the loss.
    pairs: (inputs, ids) -> similarities, [R, C], and which of them are positives and which negatives.
    shapes: (N, D) -> the inputs' shapes.
    fixed: how many of the last inputs get no gradient.
    """

    call: Callable[..., Any]
    pairs: Callable[[Sequence[Tensor], Tensor | None], Logits]
    shapes: Callable[[int, int], list[tuple[int, ...]]]
    groups: int = 1
    fixed: int = 0
    normalizes: bool = True
    decoupled: bool = False
    beta: float = 0.0
    smooths: bool = True

    def inputs(self, samples: int, dim: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(samples, dim, generator=generator)
        result = []
        for shape in self.shapes(samples, dim):
            x = torch.randn(shape, generator=generator)
            if shape == shared.shape:
                x = 0.7 * shared + x
            result.append((x if self.normalizes else x / dim**0.5).to(dtype))
        for x in result[: len(result) - self.fixed]:
            x.requires_grad_()
        return result

    def learned(self, inputs: list[Tensor]) -> list[Tensor]:
        return inputs[: len(inputs) - self.fixed]

    def rows(
        self,
        inputs: Sequence[Tensor],
        temperature: float | Tensor,
        ids: Tensor | None = None,
        label_smoothing: float = 0.0,
        debias: float = 0.0,
    ) -> Tensor:
        """[R] the loss from its logits, row by row, in exponentials and F.cross_entropy."""
        s, positive, negative = self.pairs(inputs, ids)
        losses = []
        for t, p, n in zip(s / temperature, positive, negative, strict=True):
            pos, neg = t[p], t[n]
            if debias or self.beta:
                mean = ((1 + self.beta) * neg).exp().sum() / (self.beta * neg).exp().sum()
                mean = ((mean - debias * pos.exp().mean()) / (1 - debias)).clamp_min(
                    torch.as_tensor(-1 / temperature, dtype=torch.float64).exp()
                )
                neg = (len(neg) * mean).log()[None]
            if self.decoupled:
                target = (1 - label_smoothing) * pos.mean() + label_smoothing * t[p | n].mean()
                losses.append(neg.logsumexp(0) - target)
            else:
                logits = torch.cat((pos, neg)).expand(len(pos), -1)
                losses.append(F.cross_entropy(logits, torch.arange(len(pos)), label_smoothing=label_smoothing))
        return torch.stack(losses)


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def equal(row_ids: Tensor | None, column_ids: Tensor | None, shape: tuple[int, int]) -> Tensor:
    if row_ids is None or column_ids is None:
        return torch.zeros(shape, dtype=torch.bool)
    return row_ids[:, None] == column_ids


def views(inputs: Sequence[Tensor], ids: Tensor | None) -> Logits:
    u = unit(torch.cat(list(inputs)))
    sample = torch.arange(len(inputs[0])).repeat(len(inputs))
    itself = torch.eye(len(u), dtype=torch.bool)
    positive = (sample[:, None] == sample) & ~itself
    ids = None if ids is None else ids.repeat(len(inputs))
    return u @ u.T, positive, ~(positive | itself | equal(ids, ids, (len(u), len(u))))


def one_way(q: Tensor, k: Tensor, ids: Tensor | None) -> Logits:
    positive = torch.eye(len(q), dtype=torch.bool)
    return q @ k.T, positive, ~(positive | equal(ids, ids, (len(q), len(q))))


def both_ways(inputs: Sequence[Tensor], ids: Tensor | None) -> Logits:
    there, back = one_way(inputs[0], inputs[1], ids), one_way(inputs[1], inputs[0], ids)
    return tuple(torch.cat(x) for x in zip(there, back, strict=True))  # type: ignore[return-value]


def negative_ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape) % 7


def further(inputs: Sequence[Tensor], ids: Tensor | None) -> Logits:
    q, positive_key, keys = (unit(x) for x in inputs)
    s = torch.einsum("bd,bkd->bk", q, keys.expand(len(q), *keys.shape[-2:]))
    other = torch.ones_like(s, dtype=torch.bool)
    if ids is not None:
        other = ids[:, None] != negative_ids(*keys.shape[:-1])
    s = torch.cat(((q * positive_key).sum(1, keepdim=True), s), 1)
    positive = torch.zeros_like(s, dtype=torch.bool)
    positive[:, 0] = True
    return s, positive, torch.cat((torch.zeros(len(q), 1, dtype=torch.bool), other), 1)


def texts(inputs: Sequence[Tensor], ids: Tensor | None) -> Logits:
    q, d, hard = (unit(x) for x in inputs)
    s, positive, negative = one_way(q, d, ids)
    none = torch.zeros_like(positive)
    return (
        torch.cat((s, q @ q.T, d @ d.T, torch.einsum("bd,bkd->bk", q, hard)), 1),
        torch.cat((positive, none, none, none.new_zeros(hard.shape[:2])), 1),
        torch.cat((negative, negative, negative, none.new_ones(hard.shape[:2])), 1),
    )


def _info_nce(x: Sequence[Tensor], temperature: Any, ids: Tensor | None = None, **options: Any) -> Any:
    of = None if ids is None or len(x) == 2 else negative_ids(*x[2].shape[:-1])
    mode = "paired" if x[-1].dim() == 3 else "unpaired"
    return info_nce(
        *x[:2], x[2] if len(x) == 3 else None, temperature, negative_mode=mode, ids=ids, negative_ids=of, **options
    )


def _views(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    def call(x: Sequence[Tensor], temperature: Any, ids: Tensor | None = None, **options: Any) -> Any:
        more = {"extra_views": x[2:]} if len(x) > 2 else {}
        return function(*x[:2], temperature, ids=ids, **more, **{**fixed, **options})

    return call


def _clip(x: Sequence[Tensor], temperature: Any, ids: Tensor | None = None, **options: Any) -> Any:
    return clip_loss(*x, 1 / temperature, ids=ids, **options)


def _texts(x: Sequence[Tensor], temperature: Any, ids: Tensor | None = None, **options: Any) -> Any:
    return embedding_info_nce(*x, temperature, query_query=True, document_document=True, ids=ids, **options)


def _same(count: int) -> Callable[[int, int], list[tuple[int, ...]]]:
    return lambda n, d: [(n, d)] * count


MEMBERS = {
    "nt_xent": Member(_views(nt_xent), views, _same(2), groups=2),
    "nt_xent of 3 views": Member(_views(nt_xent), views, _same(3), groups=3),
    "info_nce": Member(_info_nce, lambda x, ids: one_way(unit(x[0]), unit(x[1]), ids), _same(2)),
    "info_nce, shared": Member(_info_nce, further, lambda n, d: [(n, d), (n, d), (11, d)]),
    "info_nce, queue": Member(_info_nce, further, lambda n, d: [(n, d), (n, d), (11, d)], fixed=1),
    "info_nce, paired": Member(_info_nce, further, lambda n, d: [(n, d), (n, d), (n, 4, d)]),
    "clip": Member(_clip, both_ways, _same(2), groups=2, normalizes=False),
    "embedding": Member(_texts, texts, lambda n, d: [(n, d), (n, d), (n, 3, d)]),
    "dcl": Member(_views(dcl), views, _same(2), groups=2, decoupled=True),
    "hard negatives": Member(
        _views(hard_negative_nt_xent, beta=0.5, debias=0.0), views, _same(2), groups=2, beta=0.5, smooths=False
    ),
}
