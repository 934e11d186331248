"""Similarity family on GPUs: reductions over S = Q Kᵀ, which is never held. Signatures are the twins'.

Two forms, chosen by `configs.streamed` from the architecture, D and the dtype: *streamed* (one kernel walks over S in
tiles, what it sums in registers) up to some hundred, *chunked* (a library product for some thousand rows at a time, and
a fused kernel over it) beyond. What needs whole rows of S has the second form alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from pyssl_fast.kernels.triton import configs
from pyssl_fast.kernels.triton.similarity import chunked, streamed


def _form(q: Tensor, accumulates: bool) -> ModuleType:
    return streamed if configs.streamed(q, accumulates) else chunked


def contrast(
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    column_limit: Tensor | None,
    terms: Sequence[int],
    powers: Sequence[float],
    views: int,
    normalize: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = _form(q, False).contrast(
        q, k, scale, row_ids, column_ids, row_limit, column_limit, terms, powers, views, normalize, statistics
    )
    return result


def contrast_backward(
    grad_lse: Tensor,
    grad_positive: Tensor,
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    column_limit: Tensor | None,
    lse: Tensor,
    terms: Sequence[int],
    powers: Sequence[float],
    views: int,
    normalize: bool,
    needs_q: bool,
    needs_k: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = _form(q, True).contrast_backward(
        grad_lse, grad_positive, q, k, scale, row_ids, column_ids, row_limit, column_limit, lse, terms, powers, views,
        normalize, needs_q, needs_k,
    )  # fmt: skip
    return result


def bank_contrast(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    terms: Sequence[int],
    powers: Sequence[float],
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = _form(q, True).bank_contrast(
        q, k, scale, row_ids, column_ids, row_limit, terms, powers, statistics
    )
    return result


def sigmoid_contrast(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_weight: Tensor,
    positive_weight: Tensor,
    gradient: bool,
    needs_q: bool,
    needs_k: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _form(q, True).sigmoid_contrast(
        q, k, scale, bias, row_ids, column_ids, row_weight, positive_weight, gradient, needs_q, needs_k
    )
    return result


def neighbours(
    q: Tensor, k: Tensor | None, count: int, row_ids: Tensor | None, column_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    form = _form(q, False) if count <= configs.NEIGHBOURS_AT_MOST else chunked
    result: tuple[Tensor, Tensor] = form.neighbours(q, k, count, row_ids, column_ids)
    return result


def hardest(q: Tensor, ids: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = chunked.hardest(q, ids, offset)
    return result


def triplets(q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = chunked.triplets(q, ids, margin, euclidean, semi_hard)
    return result


def triplets_backward(
    grad_loss: Tensor, q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool
) -> Tensor:
    result: Tensor = chunked.triplets_backward(grad_loss, q, ids, margin, euclidean, semi_hard)
    return result
