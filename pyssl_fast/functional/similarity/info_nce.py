"""InfoNCE: a query, its key, and negative keys from the batch, from a queue or of each query's own (CPC, MoCo)."""

from __future__ import annotations

from torch import Tensor

from pyssl_fast.functional.checks import (
    autocast_together,
    check_alike,
    check_choice,
    check_embeddings,
    check_ids,
    check_kin,
)
from pyssl_fast.functional.similarity.softmax import (
    Negatives,
    Options,
    Result,
    against_bank,
    check_options,
    dots,
    explicit,
    finish,
    fused,
    inverse,
    pair_logits,
)

MODES = ("unpaired", "paired")


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    negative_mode: str = "unpaired",
    *,
    negatives_normalized: bool = False,
    ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    return_metrics: bool = False,
) -> Result:
    """InfoNCE (van den Oord et al. 2018, eq. 4) of cosine similarities s; one direction, from queries to keys.

        loss_i = −log(exp(s_i⁺ / τ) / (exp(s_i⁺ / τ) + Σ_j exp(s_ij / τ)))

    over the row's negatives j: without `negative_keys` the other rows' positive keys, else these. With
    `modules.KeyQueue`'s keys it is MoCo's loss (He et al. 2020, eq. 1). The [B, N] similarities are not held, except
    those of paired negatives, which are smaller than the negatives themselves.

    With shared negatives that get no gradient 4·B·N·D operations in all: the gradient of the queries is formed in the
    forward pass, so that a queue may be overwritten before backward. Else 2·B·N·D forward and 6·B·N·D backward (4 where
    one side gets no gradient).

    Args:
        query: [B, D] float32, float16, bfloat16 or float64, not normalised.
        positive_key: [B, D] like query.
        negative_keys: None; [N, D] for all queries ("unpaired"; their dtype may differ from the queries' where they get
            no gradient); or [B, N, D], of each query its own ("paired").
        temperature: τ ≠ 0, a number or a Tensor with one element, which gets its exact gradient.
        reduction: "mean", "sum" or "none".
        negative_mode: "unpaired" or "paired".
        negatives_normalized: the rows of unpaired negative_keys have length 1 already, as `KeyQueue`'s; spares a copy.
        ids: [B] integers: pairs of equal ids are no negatives. With negative_keys, negative_ids say theirs.
        negative_ids: [N], or [B, N] with paired negatives.
        weight: [B] weight of every row; reduction="mean" is then Σ w·loss / Σ w.
        label_smoothing: ε of 0 to 1, as F.cross_entropy's over the row's positive and negatives.
        debias: τ⁺ of 0 to 1 (excluded), a number or [B]: the share of false negatives that is taken out of the sum over
            the negatives (Chuang et al. 2020). Not together with label smoothing.
        return_metrics: return (loss, `Metrics`), from the same pass.

    Returns:
        [] loss, or [B] with reduction="none"; float32 (float64 for float64 embeddings).

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, by name.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    if isinstance(negative_keys, Tensor) and (negative_mode == "paired" or negative_keys.requires_grad):
        query, positive_key, negative_keys = autocast_together(query, positive_key, negative_keys)
    else:
        query, positive_key = autocast_together(query, positive_key)
    check_embeddings("query", query)
    check_embeddings("positive_key", positive_key)
    check_alike("positive_key", positive_key, "query", query)
    check_choice("negative_mode", negative_mode, MODES)
    rows = query.shape[0]
    options = check_options(rows, "query", query, weight, reduction, label_smoothing, debias, return_metrics)
    scale = inverse(temperature, query)
    ids = check_ids("ids", ids, rows, "query", query)
    if negative_keys is None:
        if negative_ids is not None:
            raise ValueError("negative_ids need negative_keys")
        negatives, positive = fused(query, positive_key, scale, options, row_ids=ids, column_ids=ids, views=2)
        return finish(negatives, positive, scale, options, query)
    if (ids is None) != (negative_ids is None):
        raise ValueError("ids and negative_ids must be given together")
    if negative_mode == "paired":
        negatives = _paired(query, negative_keys, scale, options, ids, negative_ids)
    else:
        negatives = _shared(query, negative_keys, scale, options, ids, negative_ids, negatives_normalized)
    positive = (scale.double() * dots(query, positive_key))[None]
    return finish(negatives, positive, scale, options, query)


def _shared(
    query: Tensor,
    keys: Tensor,
    scale: Tensor,
    options: Options,
    ids: Tensor | None,
    negative_ids: Tensor | None,
    unit_keys: bool,
) -> Negatives:
    check_embeddings("negative_keys", keys)
    check_kin("negative_keys", keys, "query", query, any_dtype=not keys.requires_grad)
    negative_ids = check_ids("negative_ids", negative_ids, keys.shape[0], "query", query)
    return against_bank(query, keys, scale, options, row_ids=ids, column_ids=negative_ids, unit_keys=unit_keys)


def _paired(
    query: Tensor, keys: Tensor, scale: Tensor, options: Options, ids: Tensor | None, negative_ids: Tensor | None
) -> Negatives:
    check_embeddings("negative_keys", keys, "[B, N, D]")
    check_kin("negative_keys", keys, "query", query)
    if keys.shape[0] != query.shape[0]:
        raise ValueError(f"negative_keys must be [{query.shape[0]}, N, D]; got {list(keys.shape)}")
    negative_ids = check_ids("negative_ids", negative_ids, tuple(keys.shape[:2]), "query", query)
    keep = None if ids is None or negative_ids is None else ids[:, None] != negative_ids
    return explicit(pair_logits(query, keys, scale), keep, options)
