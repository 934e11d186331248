"""InfoNCE as text-embedding models are trained: with every pair of the batch that can be a negative, and hard ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyssl_fast.functional.checks import (
    autocast_dtype,
    autocast_together,
    check_alike,
    check_count,
    check_embeddings,
    check_ids,
    check_kin,
    check_number,
    check_scalar,
)
from pyssl_fast.functional.similarity.softmax import (
    Negatives,
    Options,
    Result,
    check_options,
    dots,
    explicit,
    finish,
    fused,
    inverse,
    join,
    pair_logits,
    rounding,
)


def embedding_info_nce(
    query: Tensor,
    document: Tensor,
    hard_negatives: Tensor | None = None,
    temperature: float | Tensor = 0.05,
    *,
    query_query: bool = False,
    document_document: bool = False,
    margin: float | None = None,
    ids: Tensor | None = None,
    hard_negative_ids: Tensor | None = None,
    matryoshka_dims: Sequence[int] | None = None,
    matryoshka_weights: Sequence[float] | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    return_metrics: bool = False,
) -> Result:
    """InfoNCE of queries q and their documents d, in the form of Qwen3-Embedding (Zhang et al. 2025, eq. 1).

        loss_i = −log(exp(s(q_i, d_i) / τ) / Z_i)

    s is the cosine similarity, and Z_i the sum of exp(s / τ) over (q_i, d_i), (q_i, d_j), the query's own hard
    negatives and, where asked for, (q_i, q_j) and (d_i, d_j), of all j ≠ i.

    Each of the [B, B] similarities takes one pass (half of one for (q, q) and (d, d) without a margin) and is not held.

    Args:
        query: [B, D] float32, float16, bfloat16 or float64, not normalised.
        document: [B, D] like query: the positives.
        hard_negatives: [B, K, D] further negatives, of each query its own.
        temperature: τ ≠ 0, a number or a Tensor with one element, which gets its exact gradient.
        query_query, document_document: whether the queries (documents) are each other's negatives too.
        margin: leave out as false negatives the pairs that are more similar than (q_i, d_i) by more than this, in
            units of cosine similarity. None keeps all. What is within rounding of that bound stays: 1e-5, or the
            dtype's eps in half precision. Not together with label smoothing; needs τ > 0.
        ids: [B] integers: rows of equal ids are no negatives of each other (the same document twice in a batch).
        hard_negative_ids: [B, K] integers: hard negatives whose id is the row's are no negatives. Needs ids.
        matryoshka_dims: train these prefixes of the embeddings, each normalised by itself (Kusupati et al. 2022); the
            loss is the sum over them.
        matryoshka_weights: of the prefixes; 1 each without.
        weight: [B] weight of every row; reduction="mean" is then Σ w·loss / Σ w.
        reduction: "mean", "sum" or "none".
        label_smoothing: ε of 0 to 1, as F.cross_entropy's over the row's positive and negatives.
        debias: τ⁺ of 0 to 1 (excluded), a number or [B]: the share of false negatives that is taken out of the sum over
            the negatives (Chuang et al. 2020). Not together with label smoothing.
        return_metrics: return (loss, `Metrics`), from the same pass; of the longest prefix.

    Returns:
        [] loss, or [B] with reduction="none"; float32 (float64 for float64 embeddings).

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, by name.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    if hard_negatives is None:
        query, document = autocast_together(query, document)
    else:
        query, document, hard_negatives = autocast_together(query, document, hard_negatives)
    check_embeddings("query", query)
    check_embeddings("document", document)
    check_alike("document", document, "query", query)
    rows, width = query.shape
    if hard_negatives is not None:
        check_embeddings("hard_negatives", hard_negatives, "[B, K, D]")
        check_kin("hard_negatives", hard_negatives, "query", query)
        if hard_negatives.shape[0] != rows:
            raise ValueError(f"hard_negatives must be [{rows}, K, D]; got {list(hard_negatives.shape)}")
    options = check_options(rows, "query", query, weight, reduction, label_smoothing, debias, return_metrics)
    scale = inverse(temperature, query)
    ids = check_ids("ids", ids, rows, "query", query)
    keep: Tensor | None = None
    if hard_negative_ids is not None:
        if ids is None or hard_negatives is None:
            raise ValueError("hard_negative_ids need ids and hard_negatives")
        others = check_ids("hard_negative_ids", hard_negative_ids, tuple(hard_negatives.shape[:2]), "query", query)
        assert others is not None
        keep = ids[:, None] != others
    if margin is not None:
        _check_margin(margin, temperature, label_smoothing)
    dims, weights = _prefixes(width, matryoshka_dims, matryoshka_weights)

    longest = dims.index(max(dims))
    losses, metrics = [], None
    for number, (dim, factor) in enumerate(zip(dims, weights, strict=True)):
        watched = return_metrics and number == longest
        result = _prefix_loss(
            query[:, :dim],
            document[:, :dim],
            None if hard_negatives is None else hard_negatives[:, :, :dim],
            scale,
            options._replace(metrics=watched),
            query_query,
            document_document,
            margin,
            ids,
            keep,
        )
        if watched:
            result, metrics = result
        losses.append(factor * result)
    return (sum(losses), metrics) if return_metrics else sum(losses)


def _check_margin(margin: float, temperature: float | Tensor, label_smoothing: float) -> None:
    check_number("margin", margin, -1e30)
    if label_smoothing > 0:
        raise ValueError("label_smoothing and margin do not combine")
    number = check_scalar("temperature", temperature)
    if number is not None and number < 0:
        raise ValueError(f"margin needs a temperature above 0; got {number}")


def _prefixes(width: int, dims: Sequence[int] | None, weights: Sequence[float] | None) -> tuple[list[int], list[float]]:
    if dims is None:
        if weights is not None:
            raise ValueError("matryoshka_weights need matryoshka_dims")
        return [width], [1.0]
    dims = list(dims)
    if not dims:
        raise ValueError("matryoshka_dims must not be empty")
    for dim in dims:
        check_count("matryoshka_dims", dim)
        if dim > width:
            raise ValueError(f"matryoshka_dims must be {width} at most, the embeddings' length; got {dim}")
    weights = [1.0] * len(dims) if weights is None else list(weights)
    if len(weights) != len(dims):
        raise ValueError(f"matryoshka_weights must be {len(dims)} numbers, one for each prefix; got {len(weights)}")
    return dims, weights


def _prefix_loss(
    query: Tensor,
    document: Tensor,
    hard_negatives: Tensor | None,
    scale: Tensor,
    options: Options,
    query_query: bool,
    document_document: bool,
    margin: float | None,
    ids: Tensor | None,
    keep: Tensor | None,
) -> Result:
    limit = None
    if margin is not None:
        dtype = autocast_dtype(query)
        if dtype is not None and query.dtype != torch.float64:
            # The operator would see these, and a limit from others would part what is equal.
            query, document = query.to(dtype), document.to(dtype)
            hard_negatives = None if hard_negatives is None else hard_negatives.to(dtype)
        limit = scale.detach().double() * (dots(query.detach(), document.detach()) + margin + rounding(query))
    negatives, positive = fused(query, document, scale, options, row_ids=ids, column_ids=ids, row_limit=limit, views=2)
    for x, asked in ((query, query_query), (document, document_document)):
        if asked:
            negatives = join(negatives, _among(x, scale, options, ids, limit))
    if hard_negatives is not None:
        t = pair_logits(query, hard_negatives, scale)
        if limit is not None:
            near = t <= limit[:, None]
            keep = near if keep is None else near & keep
        negatives = join(negatives, explicit(t, keep, options))
    return finish(negatives, positive, scale, options, query)


def _among(x: Tensor, scale: Tensor, options: Options, ids: Tensor | None, limit: Tensor | None) -> Negatives:
    """Rows of one kind against each other."""
    if limit is None:
        return fused(x, None, scale, options, row_ids=ids)[0]
    # Limits are not symmetric: rows against columns, with ids to leave out the diagonal.
    ids = torch.arange(x.shape[0], device=x.device) if ids is None else ids
    return fused(x, x, scale, options, row_ids=ids, column_ids=ids, row_limit=limit)[0]
