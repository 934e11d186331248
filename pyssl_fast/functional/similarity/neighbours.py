"""Nearest neighbours, and the losses that pull a row towards them: NNCLR, Mean Shift."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import (
    autocast_together,
    check_alike,
    check_count,
    check_embeddings,
    check_ids,
    check_kin,
    check_reduction,
    check_weight,
    reduce,
)
from pyssl_fast.functional.similarity.softmax import Result, check_options, finish, fused, inverse, unit, unit_like
from pyssl_fast.ops.similarity import statistics_dtype


def nearest_neighbours(
    query: Tensor, keys: Tensor | None = None, count: int = 1, *, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """The `count` keys with the largest cosine similarity of every query, the most similar first.

    The [M, N] similarities are never held: memory is O((M + N)·D). One matrix product (half of one without keys).
    Nothing is differentiated: gather the rows by their index for a gradient.

    Args:
        query: [M, D]: float32, float16, bfloat16 or float64.
        keys: [N, D] on query's device; computed with in query's dtype. None: the other queries.
        count: 1 to N (without keys M − 1).
        normalize: divide all rows by their length; False: inner products of the rows as they are.

    Returns:
        similarity: [M, count] float32 (float64 for float64 queries).
        index: [M, count] int64. Of equal keys the first. A query or key that is not a number may leave −1.

    Raises:
        TypeError: integer rows, a count that is no int.
        ValueError: shapes that do not fit, two devices, empty matrices, count out of range.
    """
    check_embeddings("query", query)
    if keys is not None:
        check_embeddings("keys", keys)
        check_kin("keys", keys, "query", query, any_dtype=True)
    check_count("count", count)
    most = query.shape[0] - 1 if keys is None else keys.shape[0]
    if count > most:
        raise ValueError(
            f"count must be {most} at most, the number of {'other rows' if keys is None else 'keys'}; got {count}"
        )
    with torch.no_grad():
        q = query.detach()
        k = None if keys is None else keys.detach()
        if normalize:
            q, k = unit_like(q), None if k is None else unit_like(k)
        similarity, index = torch.ops.pyssl_fast.neighbours(q, k, count, None, None, backend.choose("similarity", q))
    return similarity, index


def nnclr(
    neighbours: Tensor,
    predictions: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    symmetric: bool = False,
    ids: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    return_metrics: bool = False,
) -> Result:
    """NNCLR (Dwibedi et al. 2021, eq. 2): InfoNCE of one view's nearest neighbours and the other's predictions.

        loss_i = −log(exp(⟨n_i, p_i⟩ / τ) / Σ_j exp(⟨n_i, p_j⟩ / τ)),  n and p normalised

    The [N, N] similarities are never held: memory is O(N·D). 6·N²·D operations with gradients of the predictions alone.

    Args:
        neighbours: [N, D] of the first view's embeddings, as `NNMemoryBankModule` gives them: float32, float16,
            bfloat16 or float64.
        predictions: [N, D] of the second view, alike.
        temperature: τ ≠ 0, a number or a Tensor with one element, which gets its exact gradient.
        symmetric: the paper's symmetric form: predictions choose among neighbours too, and the mean of both is taken.
        ids: [N] integers; samples of equal ids are no negatives of each other.
        weight: [N] weight of every sample; reduction="mean" is then Σ w·loss / Σ w.
        reduction: "mean", "sum", or "none".
        label_smoothing: ε of 0 to 1, as F.cross_entropy's over the row's classes.
        debias: τ⁺ of 0 to 1 (excluded), a number or [N]: the share of false negatives that is taken out of the sum over
            the negatives (Chuang et al. 2020, eq. 8). Not together with label smoothing.
        return_metrics: return (loss, `Metrics`), from the same pass.

    Returns:
        [] loss, or [N] with reduction="none" ([2, N] if symmetric); float32 (float64 for float64 rows).
        Second derivatives are not supported.

    Raises:
        TypeError: integer rows, two dtypes, a temperature that is no number.
        ValueError: two shapes or devices, an empty batch, a temperature that is 0, infinite or NaN (a Tensor's value is
            read on the CPU only), an option out of its range.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    neighbours, predictions = autocast_together(neighbours, predictions)
    check_embeddings("neighbours", neighbours)
    check_embeddings("predictions", predictions)
    check_alike("predictions", predictions, "neighbours", neighbours)
    samples = neighbours.shape[0]
    options = check_options(
        samples, "neighbours", neighbours, weight, reduction, label_smoothing, debias, return_metrics
    )
    ids = check_ids("ids", ids, samples, "neighbours", neighbours)
    scale = inverse(temperature, neighbours)
    negatives, positive = fused(
        neighbours, predictions, scale, options, row_ids=ids, column_ids=ids, views=2, columns=symmetric
    )
    return finish(negatives, positive, scale, options, neighbours, groups=2 if symmetric else 1)


def mean_shift(
    query: Tensor,
    target: Tensor,
    bank: Tensor,
    count: int = 5,
    *,
    normalize_bank: bool = True,
    labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    return_metrics: bool = False,
) -> Result:
    """Mean Shift (Koohpayegani et al. 2021): mean of 2 − 2cos(q, b) over the bank rows b nearest to the target.

    The [N, K] similarities are never held: memory is O((N·count + K)·D), one matrix product. Only the query gets a
    gradient. In the paper the bank holds the targets already, each of which is then its own nearest row.

    Args:
        query: [N, D] predictions: float32, float16, bfloat16 or float64, not normalised.
        target: [N, D] like query.
        bank: [K, D] on query's device.
        count: of nearest rows, 1 to K.
        normalize_bank: False spares a pass over a bank whose rows have length 1 already.
        labels, bank_labels: [N], [K] integers: for the purity.
        weight: [N] weight of every row; reduction="mean" is then Σ w·loss / Σ w.
        reduction: "mean", "sum", or "none".
        return_metrics: return (loss, purity), [] the share of the nearest rows that have the target's label.

    Returns:
        [] loss, or [N] with reduction="none"; float32 (float64 for float64 queries).

    Raises:
        TypeError: integer rows, float labels, two dtypes, a count that is no int.
        ValueError: shapes that do not fit, two devices, empty matrices, count out of range, metrics without labels.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    query, target = autocast_together(query, target, elementwise=True)
    check_embeddings("query", query)
    check_embeddings("target", target)
    check_alike("target", target, "query", query)
    check_embeddings("bank", bank)
    check_kin("bank", bank, "query", query, any_dtype=True)
    check_reduction(reduction)
    check_weight("weight", weight, query.shape[0], "query", query)
    labels = check_ids("labels", labels, query.shape[0], "query", query)
    bank_labels = check_ids("bank_labels", bank_labels, bank.shape[0], "query", query)
    if return_metrics and (labels is None or bank_labels is None):
        raise ValueError("return_metrics needs labels and bank_labels")
    keys, aim = bank.detach(), target.detach()
    _, index = nearest_neighbours(unit_like(aim), unit_like(keys) if normalize_bank else keys, count, normalize=False)
    index = index.clamp_min(0)  # −1 where the target is not a number, nor then is the loss
    apart = unit(query)[:, None] - unit(keys[index], normalize_bank)  # [N, count, D]; 2 − 2cos has fewer digits
    loss = apart.square().sum(2).mean(1) + 0 * aim.sum(1, dtype=torch.float64)
    result = reduce(loss, reduction, weight).to(statistics_dtype(query))
    if not return_metrics:
        return result
    assert labels is not None and bank_labels is not None
    hit = (bank_labels[index] == labels[:, None]).to(result.dtype).mean(1)
    return result, hit.masked_fill(loss.isnan(), torch.nan).mean()
