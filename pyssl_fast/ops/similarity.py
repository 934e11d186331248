"""Similarity family, the operators. What they compute is said by their twins in kernels/reference/similarity.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyssl_fast.backend import kernels
from pyssl_fast.kernels.reference.similarity import COLUMNS, NEGATIVES, ROWS, SAME
from pyssl_fast.ops.registry import define

__all__ = ["COLUMNS", "NEGATIVES", "ROWS", "SAME", "statistics_dtype"]


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Of losses and scales that belong to x. Sums of a row inside an operator are float64 throughout."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _row(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.float64)


# ---- contrast: log-sum-exps of rows and columns --------------------------------------------------------------------


_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


# What a pointer would not survive is checked here, for those who call operators directly; functional/ says it better.
def _check_operands(q: Tensor, k: Tensor | None, views: int = 0) -> None:
    if q.dim() != 2 or q.shape[0] == 0 or q.shape[1] == 0:
        raise ValueError(f"q must be [M, D] with M, D ≥ 1; got {list(q.shape)}")
    if k is not None and (k.dim() != 2 or k.shape[0] == 0 or k.shape[1] != q.shape[1]):
        raise ValueError(f"k must be [N, {q.shape[1]}] with N ≥ 1; got {list(k.shape)}")
    for x in (q,) if k is None else (q, k):
        if x.dtype not in _DTYPES:
            raise TypeError(f"q and k must be float32, float16, bfloat16 or float64; got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"q and k must be on one device; got {q.device} and {x.device}")
    fits = q.shape[0] % max(views, 1) == 0 if k is None else views in (0, 2)
    if views == 1 or views < 0 or not fits or (k is not None and views and k.shape[0] < q.shape[0]):
        raise ValueError(f"{list(q.shape)} rows do not stand in {views} views")


def _check_alike(q: Tensor, k: Tensor | None) -> None:
    if k is not None and k.dtype != q.dtype:
        raise TypeError(f"q and k must have one dtype; got {q.dtype} and {k.dtype}")


def _check_ids(q: Tensor, k: Tensor | None, row_ids: Tensor | None, column_ids: Tensor | None) -> None:
    if (k is not None and (row_ids is None) != (column_ids is None)) or (k is None and column_ids is not None):
        raise ValueError("row_ids and column_ids come together where there is a k; without one there are row_ids alone")
    for ids, like in ((row_ids, q), (column_ids, k)):
        if ids is None or like is None:
            continue
        if ids.dtype != torch.int64 or ids.shape != like.shape[:1] or ids.device != like.device:
            wanted = f"int64 [{like.shape[0]}] on {like.device}"
            raise ValueError(f"ids must be {wanted}; got {ids.dtype} {list(ids.shape)} on {ids.device}")


def _check_lines(like: Tensor, *lines: tuple[str, Tensor | None, int]) -> None:
    """(name, x, length): x must be floating-point [length] on the device of `like`."""
    for name, x, length in lines:
        if x is not None and (not x.is_floating_point() or x.shape != (length,) or x.device != like.device):
            wanted = f"floating-point [{length}] on {like.device}"
            raise ValueError(f"{name} must be {wanted}; got {x.dtype} {list(x.shape)} on {x.device}")


def _check_terms(k: Tensor | None, terms: Sequence[int], powers: Sequence[float]) -> None:
    if not 1 <= len(terms) <= 4 or len(terms) != len(powers):
        raise ValueError(f"there must be 1 to 4 terms, and as many powers; got {len(terms)} and {len(powers)}")
    if any(term not in (0, 1, 2, 3) for term in terms) or not all(power > 0 for power in powers):
        raise ValueError(f"terms must be 0 to 3 and powers above 0; got {list(terms)} and {list(powers)}")
    if k is None and any(term & COLUMNS for term in terms):
        raise ValueError("terms of columns need a k")


def _check_limits(q: Tensor, k: Tensor | None, row_limit: Tensor | None, column_limit: Tensor | None) -> None:
    if k is None and (row_limit is not None or column_limit is not None):
        raise ValueError("limits need a k")
    columns = 0 if k is None else k.shape[0]
    _check_lines(q, ("row_limit", row_limit, q.shape[0]), ("column_limit", column_limit, columns))


def _length(q: Tensor, k: Tensor | None, terms: Sequence[int]) -> int:
    """Of all terms' log-sum-exps, one after the other."""
    columns = q.shape[0] if k is None else k.shape[0]
    return sum(columns if term & COLUMNS else q.shape[0] for term in terms)


def _contrast(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_operands(q, k, views)
    _check_alike(q, k)
    _check_ids(q, k, row_ids, column_ids)
    _check_limits(q, k, row_limit, column_limit)
    _check_terms(k, terms, powers)
    result: tuple[Tensor, Tensor, Tensor] = kernels(backend, "similarity").contrast(
        q, k, scale, row_ids, column_ids, row_limit, column_limit, terms, powers, views, normalize, statistics
    )
    return result


def _contrast_fake(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = q.shape[0], q.shape[0] if k is None else k.shape[0]
    watched = rows + (columns if any(term & COLUMNS for term in terms) else 0) if statistics else 0
    return _row(q, _length(q, k, terms)), _row(q, max(views - 1, 0), rows), _row(q, 3, watched)


def _contrast_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.rest = inputs[:7], (*inputs[7:11], inputs[12])
    lse, positive, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)
    ctx.positives = positive.shape
    ctx.save_for_backward(*tensors, lse)


def _contrast_autograd(ctx: Any, grad_lse: Tensor | None, grad_positive: Tensor | None, _: None) -> tuple[Any, ...]:
    nothing = (None,) * 13
    if grad_lse is None and grad_positive is None:
        return nothing
    *tensors, lse = ctx.saved_tensors
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    grad_positive = lse.new_zeros(ctx.positives) if grad_positive is None else grad_positive
    terms, powers, views, normalize, backend = ctx.rest
    needs_q, needs_k, needs_scale = ctx.needs_input_grad[:3]
    grad_q, grad_k, grad_scale = torch.ops.pyssl_fast.contrast_backward(
        grad_lse, grad_positive, *tensors, lse, terms, powers, views, normalize, needs_q, needs_k, backend
    )
    return (
        grad_q if needs_q else None,
        grad_k if needs_k else None,
        grad_scale if needs_scale else None,
        *nothing[3:],
    )


def _contrast_backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_operands(q, k, views)
    _check_terms(k, terms, powers)
    _check_lines(q, ("grad_lse", grad_lse, lse.numel()), ("lse", lse, _length(q, k, terms)))
    if grad_positive.shape != (max(views - 1, 0), q.shape[0]):
        raise ValueError(f"grad_positive must be [views − 1, {q.shape[0]}]; got {list(grad_positive.shape)}")
    # With a gradient for the scale alone, one side's product is formed: ⟨q, ∂q⟩ sums to scale·∂scale.
    result: tuple[Tensor, Tensor, Tensor] = kernels(backend, "similarity").contrast_backward(
        grad_lse,
        grad_positive,
        q,
        k,
        scale,
        row_ids,
        column_ids,
        row_limit,
        column_limit,
        lse,
        terms,
        powers,
        views,
        normalize,
        needs_q or not needs_k or k is None,
        needs_k and k is not None,
    )
    return result


def _contrast_backward_fake(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_q = q.new_empty(q.shape if needs_q or not needs_k or k is None else (0,))
    grad_k = k.new_empty(k.shape) if needs_k and k is not None else q.new_empty(0)
    return grad_q, grad_k, torch.empty_like(scale)


# The fewest that will do, in matrix products of 2·M·N·D operations: forward 1 (½ with k None), backward 1 (½) to form
# S again and 1 for every gradient. Bytes: a few (M + N)·D.
_CONTRAST = (
    "Tensor q, Tensor? k, Tensor scale, Tensor? row_ids, Tensor? column_ids, Tensor? row_limit, Tensor? column_limit"
)
define(
    f"contrast({_CONTRAST}, int[] terms, float[] powers, int views, bool normalize, bool statistics, str backend)"
    " -> (Tensor lse, Tensor positive, Tensor statistics)",
    kernel=_contrast,
    fake=_contrast_fake,
    setup_context=_contrast_setup,
    backward=_contrast_autograd,
    autocast=2,
)
define(
    f"contrast_backward(Tensor grad_lse, Tensor grad_positive, {_CONTRAST}, Tensor lse, int[] terms, float[] powers,"
    " int views, bool normalize, bool needs_q, bool needs_k, str backend)"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_scale)",
    kernel=_contrast_backward,
    fake=_contrast_backward_fake,
)


# ---- bank_contrast: against keys without gradient, in one pass -----------------------------------------------------


def _bank_contrast(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    terms: Sequence[int],
    powers: Sequence[float],
    statistics: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_operands(q, k)
    _check_ids(q, k, row_ids, column_ids)
    _check_limits(q, k, row_limit, None)
    _check_terms(k, terms, powers)
    if any(term & COLUMNS for term in terms):
        raise ValueError("bank_contrast has terms of rows alone")
    result: tuple[Tensor, Tensor, Tensor] = kernels(backend, "similarity").bank_contrast(
        q, k, scale, row_ids, column_ids, row_limit, terms, powers, statistics
    )
    return result


def _bank_contrast_fake(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    terms: Sequence[int],
    powers: Sequence[float],
    statistics: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, count = q.shape[0], len(terms)
    mean_key = q.new_empty(count, *q.shape, dtype=statistics_dtype(q))
    return _row(q, count, rows), mean_key, _row(q, 3, rows if statistics else 0)


def _bank_contrast_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, ctx.powers = inputs[0], inputs[7]
    _, mean_key, statistics = output
    ctx.mark_non_differentiable(mean_key, statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, inputs[2], mean_key)  # not k: it may be overwritten before backward


def _bank_contrast_autograd(ctx: Any, grad_lse: Tensor | None, *_: None) -> tuple[Any, ...]:
    nothing = (None,) * 10
    if grad_lse is None:
        return nothing
    q, scale, mean_key = ctx.saved_tensors
    needs_q, _, needs_scale = ctx.needs_input_grad[:3]
    grad_q, grad_scale = torch.ops.pyssl_fast.bank_contrast_backward(grad_lse, q, scale, mean_key, ctx.powers)
    return grad_q if needs_q else None, None, grad_scale if needs_scale else None, *nothing[3:]


def _bank_contrast_backward(
    grad_lse: Tensor, q: Tensor, scale: Tensor, mean_key: Tensor, powers: Sequence[float]
) -> tuple[Tensor, Tensor]:
    weight = torch.stack([grad * power for grad, power in zip(grad_lse, powers, strict=True)])  # no copy to the device
    grad = torch.einsum("tm,tmd->md", weight.to(mean_key.dtype), mean_key)  # without scale
    return (grad * scale).to(q.dtype), (q.double() * grad.double()).sum().to(scale.dtype)


def _bank_contrast_backward_fake(
    grad_lse: Tensor, q: Tensor, scale: Tensor, mean_key: Tensor, powers: Sequence[float]
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), torch.empty_like(scale)


# 2 matrix products, 1 without the second; the keys are read once, whatever their layout, and never copied.
define(
    "bank_contrast(Tensor q, Tensor k, Tensor scale, Tensor? row_ids, Tensor? column_ids, Tensor? row_limit,"
    " int[] terms, float[] powers, bool statistics, str backend) -> (Tensor lse, Tensor mean_key, Tensor statistics)",
    kernel=_bank_contrast,
    fake=_bank_contrast_fake,
    setup_context=_bank_contrast_setup,
    backward=_bank_contrast_autograd,
    autocast=1,
)
define(
    "bank_contrast_backward(Tensor grad_lse, Tensor q, Tensor scale, Tensor mean_key, float[] powers)"
    " -> (Tensor grad_q, Tensor grad_scale)",
    kernel=_bank_contrast_backward,
    fake=_bank_contrast_backward_fake,
)


# ---- sigmoid_contrast: a binary cross-entropy per pair -------------------------------------------------------------


def _sigmoid_total(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_weight: Tensor,
    positive_weight: Tensor,
    needs_q: bool,
    needs_k: bool,
    needs_any: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_operands(q, k)
    _check_alike(q, k)
    _check_ids(q, k, row_ids, column_ids)
    _check_lines(q, ("row_weight", row_weight, q.shape[0]), ("positive_weight", positive_weight, q.shape[0]))
    loss, *grads = kernels(backend, "similarity").sigmoid_contrast(
        q, k, scale, bias, row_ids, column_ids, row_weight, positive_weight, needs_any, needs_q, needs_k
    )
    return (loss * row_weight).sum(), *grads


def _sigmoid_total_fake(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_weight: Tensor,
    positive_weight: Tensor,
    needs_q: bool,
    needs_k: bool,
    needs_any: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_q = q.new_empty(q.shape if needs_q and needs_any else (0,))
    grad_k = k.new_empty(k.shape if needs_k and needs_any else (0,))
    one = _row(q) if needs_any else _row(q, 0)
    return _row(q), grad_q, grad_k, one, torch.empty_like(one)


def _sigmoid_total_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *grads = output
    ctx.mark_non_differentiable(*grads)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4], *grads)


def _sigmoid_total_autograd(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    nothing = (None,) * 12
    if grad is None:
        return nothing
    grads = torch.ops.pyssl_fast.sigmoid_total_backward(grad, *ctx.saved_tensors)
    return *(x if needed else None for x, needed in zip(grads, ctx.needs_input_grad, strict=False)), *nothing[4:]


def _sigmoid_total_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_scale: Tensor,
    grad_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads, inputs = (grad_q, grad_k, grad_scale, grad_bias), (q, k, scale, bias)
    a, b, c, d = ((x * grad).to(like.dtype) for x, like in zip(grads, inputs, strict=True))
    return a, b, c.reshape(scale.shape), d.reshape(bias.shape)


def _sigmoid_total_backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_scale: Tensor,
    grad_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(grad_q), torch.empty_like(grad_k), torch.empty_like(scale), torch.empty_like(bias)


def _sigmoid_rows(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    positive_weight: Tensor,
    backend: str,
) -> Tensor:
    _check_operands(q, k)
    _check_alike(q, k)
    _check_ids(q, k, row_ids, column_ids)
    _check_lines(q, ("positive_weight", positive_weight, q.shape[0]))
    loss: Tensor = kernels(backend, "similarity").sigmoid_contrast(
        q, k, scale, bias, row_ids, column_ids, positive_weight, positive_weight, False, False, False
    )[0]
    return loss


def _sigmoid_rows_fake(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    positive_weight: Tensor,
    backend: str,
) -> Tensor:
    return _row(q, q.shape[0])


def _sigmoid_rows_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[7]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:7])


def _sigmoid_rows_autograd(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    nothing = (None,) * 8
    if grad is None:
        return nothing
    q, k, scale, bias, row_ids, column_ids, positive_weight = ctx.saved_tensors
    needs_q, needs_k, needs_scale, needs_bias = ctx.needs_input_grad[:4]
    _, *grads = torch.ops.pyssl_fast.sigmoid_rows_backward(
        q, k, scale, bias, row_ids, column_ids, grad, positive_weight, needs_q, needs_k, True, ctx.backend
    )
    return (
        grads[0] if needs_q else None,
        grads[1] if needs_k else None,
        grads[2].to(scale.dtype) if needs_scale else None,
        grads[3].to(bias.dtype) if needs_bias else None,
        *nothing[4:],
    )


# The gradient of a pair needs nothing but that pair: sigmoid_total forms it in the forward pass, 3 matrix products in
# all. sigmoid_rows, whose rows' gradients come later, takes 4.
_SIGMOID = "Tensor q, Tensor k, Tensor scale, Tensor bias, Tensor? row_ids, Tensor? column_ids"
define(
    f"sigmoid_total({_SIGMOID}, Tensor row_weight, Tensor positive_weight, bool needs_q, bool needs_k, bool needs_any,"
    " str backend) -> (Tensor total, Tensor grad_q, Tensor grad_k, Tensor grad_scale, Tensor grad_bias)",
    kernel=_sigmoid_total,
    fake=_sigmoid_total_fake,
    setup_context=_sigmoid_total_setup,
    backward=_sigmoid_total_autograd,
    autocast=2,
)
define(
    "sigmoid_total_backward(Tensor grad, Tensor q, Tensor k, Tensor scale, Tensor bias, Tensor grad_q, Tensor grad_k,"
    " Tensor grad_scale, Tensor grad_bias) -> (Tensor, Tensor, Tensor, Tensor)",
    kernel=_sigmoid_total_backward,
    fake=_sigmoid_total_backward_fake,
)
define(
    f"sigmoid_rows({_SIGMOID}, Tensor positive_weight, str backend) -> Tensor",
    kernel=_sigmoid_rows,
    fake=_sigmoid_rows_fake,
    setup_context=_sigmoid_rows_setup,
    backward=_sigmoid_rows_autograd,
    autocast=2,
)
define(  # sigmoid_total without a gradient of its own
    f"sigmoid_rows_backward({_SIGMOID}, Tensor row_weight, Tensor positive_weight, bool needs_q, bool needs_k,"
    " bool needs_any, str backend)"
    " -> (Tensor total, Tensor grad_q, Tensor grad_k, Tensor grad_scale, Tensor grad_bias)",
    kernel=_sigmoid_total,
    fake=_sigmoid_total_fake,
)


# ---- neighbours, hardest: indices of the most and the least similar -------------------------------------------------


def _neighbours(
    q: Tensor, k: Tensor | None, count: int, row_ids: Tensor | None, column_ids: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    _check_operands(q, k)
    _check_ids(q, k, row_ids, column_ids)
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    result: tuple[Tensor, Tensor] = kernels(backend, "similarity").neighbours(q, k, count, row_ids, column_ids)
    return result


def _neighbours_fake(
    q: Tensor, k: Tensor | None, count: int, row_ids: Tensor | None, column_ids: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    shape = (q.shape[0], count)
    return q.new_empty(shape, dtype=statistics_dtype(q)), q.new_empty(shape, dtype=torch.int64)


def _hardest(q: Tensor, ids: Tensor, offset: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    _check_operands(q, None)
    _check_ids(q, None, ids, None)
    _check_lines(q, ("offset", offset, q.shape[0]))
    result: tuple[Tensor, Tensor] = kernels(backend, "similarity").hardest(q, ids, offset)
    return result


def _hardest_fake(q: Tensor, ids: Tensor, offset: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(ids), torch.empty_like(ids)


# 1 matrix product (½ with k None); S is never held.
define(
    "neighbours(Tensor q, Tensor? k, int count, Tensor? row_ids, Tensor? column_ids, str backend)"
    " -> (Tensor similarity, Tensor index)",
    kernel=_neighbours,
    fake=_neighbours_fake,
    autocast=1,
)
define(
    "hardest(Tensor q, Tensor ids, Tensor offset, str backend) -> (Tensor negative, Tensor positive)",
    kernel=_hardest,
    fake=_hardest_fake,
    autocast=1,
)


# ---- triplets: all of them ------------------------------------------------------------------------------------------


def _triplets(
    q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool, backend: str
) -> tuple[Tensor, Tensor]:
    _check_operands(q, None)
    _check_ids(q, None, ids, None)
    result: tuple[Tensor, Tensor] = kernels(backend, "similarity").triplets(q, ids, margin, euclidean, semi_hard)
    return result


def _triplets_fake(
    q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return _row(q, q.shape[0]), _row(q, q.shape[0])


def _triplets_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, ids, *ctx.rest = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, ids)


def _triplets_autograd(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Any, ...]:
    if grad_loss is None:
        return (None,) * 6
    return torch.ops.pyssl_fast.triplets_backward(grad_loss, *ctx.saved_tensors, *ctx.rest), *(None,) * 5


def _triplets_backward(
    grad_loss: Tensor, q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool, backend: str
) -> Tensor:
    result: Tensor = kernels(backend, "similarity").triplets_backward(grad_loss, q, ids, margin, euclidean, semi_hard)
    return result


def _triplets_backward_fake(
    grad_loss: Tensor, q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool, backend: str
) -> Tensor:
    return q.new_empty(q.shape)


# 1 matrix product forward, 3 backward, and a comparison for each of the M·P·N triplets, in rows that stay in the cache.
define(
    "triplets(Tensor q, Tensor ids, float margin, bool euclidean, bool semi_hard, str backend)"
    " -> (Tensor loss, Tensor count)",
    kernel=_triplets,
    fake=_triplets_fake,
    setup_context=_triplets_setup,
    backward=_triplets_autograd,
    autocast=1,
)
define(
    "triplets_backward(Tensor grad_loss, Tensor q, Tensor ids, float margin, bool euclidean, bool semi_hard,"
    " str backend) -> Tensor",
    kernel=_triplets_backward,
    fake=_triplets_backward_fake,
)
