"""Similarity family on the CPU: see csrc/cpu/similarity/similarity.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyssl_fast import _cpu
from pyssl_fast.kernels.cpu.pointers import NO_MATRIX, ids32, matrix, pointer, precision_code, rows
from pyssl_fast.kernels.reference.similarity import COLUMNS


def _ids(row_ids: Tensor | None, column_ids: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both as int32. Rows against each other have one of them, columns of their own two or none."""
    if row_ids is None:
        return None, None
    return ids32(row_ids, column_ids)


def _pairs(
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    ids: tuple[Tensor | None, Tensor | None],
    limits: tuple[Tensor | None, Tensor | None],
    terms: Sequence[int],
    powers: Sequence[float],
    views: int,
    normalize: bool,
) -> _cpu.Pairs:
    """What the tensors must outlive."""
    return _cpu.Pairs(
        matrix(q),
        NO_MATRIX if k is None else matrix(k),
        scale.item(),
        pointer(ids[0]),
        pointer(ids[1]),
        pointer(limits[0]),
        pointer(limits[1]),
        list(terms),
        list(powers),
        views,
        normalize,
        precision_code(q),
        torch.get_num_threads(),
    )


def _limit(limit: Tensor | None) -> Tensor | None:
    return None if limit is None else limit.float().contiguous()


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
    q, k = rows(q), None if k is None else rows(k)
    ids, limits = _ids(row_ids, column_ids), (_limit(row_limit), _limit(column_limit))
    columns = q.shape[0] if k is None else k.shape[0]
    length = sum(columns if term & COLUMNS else q.shape[0] for term in terms)
    watched = q.shape[0] + (columns if any(term & COLUMNS for term in terms) else 0)
    lse = q.new_empty(length, dtype=torch.float64)
    positive = q.new_empty(max(views - 1, 0), q.shape[0], dtype=torch.float64)
    found = q.new_empty(3, watched if statistics else 0, dtype=torch.float64)
    pairs = _pairs(q, k, scale, ids, limits, terms, powers, views, normalize)
    _cpu.contrast(pairs, lse.data_ptr(), positive.data_ptr(), found.data_ptr() if statistics else 0)
    return lse, positive, found


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
    q, k = rows(q), None if k is None else rows(k)
    ids, limits = _ids(row_ids, column_ids), (_limit(row_limit), _limit(column_limit))
    grad_lse, grad_positive, lse = (x.double().contiguous() for x in (grad_lse, grad_positive, lse))
    grad_q = q.new_empty(q.shape if needs_q else (0,))
    grad_k = q.new_empty(0) if k is None or not needs_k else k.new_empty(k.shape)
    grad_scale = _cpu.contrast_backward(
        _pairs(q, k, scale, ids, limits, terms, powers, views, normalize),
        grad_lse.data_ptr(),
        grad_positive.data_ptr(),
        lse.data_ptr(),
        matrix(grad_q) if needs_q else NO_MATRIX,
        matrix(grad_k) if grad_k.dim() == 2 else NO_MATRIX,
    )
    return grad_q, grad_k, torch.full_like(scale, grad_scale)


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
    q, k = rows(q), rows(k)
    ids, limits = _ids(row_ids, column_ids), (_limit(row_limit), None)
    lse = q.new_empty(len(terms), q.shape[0], dtype=torch.float64)
    mean_key = q.new_empty(len(terms), *q.shape, dtype=torch.float32)
    found = q.new_empty(3, q.shape[0] if statistics else 0, dtype=torch.float64)
    pairs = _pairs(q, k, scale, ids, limits, terms, powers, 0, False)
    _cpu.bank_contrast(pairs, lse.data_ptr(), mean_key.data_ptr(), found.data_ptr() if statistics else 0)
    return lse, mean_key, found


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
    q, k = rows(q), rows(k)
    ids = _ids(row_ids, column_ids)
    row_weight, positive_weight = (x.float().contiguous() for x in (row_weight, positive_weight))
    loss = q.new_empty(q.shape[0], dtype=torch.float64)
    # With a gradient for scale or bias alone, one side's product is formed: ⟨q, ∂q⟩ sums to scale·∂scale.
    form_q, form_k = gradient and (needs_q or not needs_k), gradient and needs_k
    grad_q, grad_k = q.new_empty(q.shape if form_q else (0,)), k.new_empty(k.shape if form_k else (0,))
    grad_scale, grad_bias = _cpu.sigmoid_contrast(
        matrix(q),
        matrix(k),
        scale.item(),
        bias.item(),
        pointer(ids[0]),
        pointer(ids[1]),
        row_weight.data_ptr(),
        positive_weight.data_ptr(),
        loss.data_ptr(),
        gradient,
        matrix(grad_q) if form_q else NO_MATRIX,
        matrix(grad_k) if form_k else NO_MATRIX,
        precision_code(q),
        torch.get_num_threads(),
    )
    none = loss.new_empty(0)
    if not gradient:
        return loss, grad_q, grad_k, none, none.clone()
    if not needs_q:
        grad_q = q.new_empty(0)
    return loss, grad_q, grad_k, loss.new_full((), grad_scale), loss.new_full((), grad_bias)


def neighbours(
    q: Tensor, k: Tensor | None, count: int, row_ids: Tensor | None, column_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    q, k = rows(q), None if k is None else rows(k)
    ids = _ids(row_ids, column_ids)
    similarity = q.new_empty(q.shape[0], count, dtype=torch.float32)
    index = q.new_empty(q.shape[0], count, dtype=torch.int64)
    _cpu.neighbours(
        matrix(q),
        NO_MATRIX if k is None else matrix(k),
        count,
        pointer(ids[0]),
        pointer(ids[1]),
        similarity.data_ptr(),
        index.data_ptr(),
        precision_code(q),
        torch.get_num_threads(),
    )
    return similarity, index


def hardest(q: Tensor, ids: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    q, offset = rows(q), offset.float().contiguous()
    narrow, _ = ids32(ids, None)
    negative, positive = torch.empty_like(ids), torch.empty_like(ids)
    _cpu.hardest(
        matrix(q),
        narrow.data_ptr(),
        offset.data_ptr(),
        negative.data_ptr(),
        positive.data_ptr(),
        precision_code(q),
        torch.get_num_threads(),
    )
    return negative, positive


def _triplets(
    q: Tensor,
    ids: Tensor,
    margin: float,
    euclidean: bool,
    semi_hard: bool,
    loss: Tensor | None,
    count: Tensor | None,
    grad_loss: Tensor | None,
    grad_q: Tensor | None,
) -> None:
    narrow, _ = ids32(ids, None)
    _cpu.triplets(
        matrix(q),
        pointer(narrow),
        margin,
        euclidean,
        semi_hard,
        pointer(loss),
        pointer(count),
        pointer(grad_loss),
        NO_MATRIX if grad_q is None else matrix(grad_q),
        precision_code(q),
        torch.get_num_threads(),
    )


def triplets(q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool) -> tuple[Tensor, Tensor]:
    q = rows(q)
    loss, count = (q.new_empty(q.shape[0], dtype=torch.float64) for _ in range(2))
    _triplets(q, ids, margin, euclidean, semi_hard, loss, count, None, None)
    return loss, count


def triplets_backward(
    grad_loss: Tensor, q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool
) -> Tensor:
    q, grad_loss = rows(q), grad_loss.double().contiguous()
    grad_q = q.new_empty(q.shape)
    _triplets(q, ids, margin, euclidean, semi_hard, None, None, grad_loss, grad_q)
    return grad_q
