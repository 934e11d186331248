"""Triplet margin losses: of given triplets, and of those in a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import (
    autocast_together,
    check_alike,
    check_choice,
    check_embeddings,
    check_ids,
    check_number,
    check_reduction,
    reduce,
)
from pyssl_fast.functional.similarity.groups import count_equal
from pyssl_fast.functional.similarity.softmax import unit
from pyssl_fast.ops.similarity import statistics_dtype

MINING = ("all", "hard", "semi-hard")
DISTANCES = ("euclidean", "cosine")
BATCH_REDUCTIONS = ("nonzero", "mean", "sum", "none")


def triplet_margin(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    *,
    reduction: str = "mean",
) -> Tensor:
    """max(d(a, p) − d(a, n) + margin, 0) of given triplets, d(x, y) = ‖x − y + eps‖_p: torch's F.triplet_margin_loss.

    Args:
        anchor, positive, negative: [N, D], alike: float32, float16, bfloat16 or float64.
        margin: > 0.
        p: norm of the distance, inf too.
        eps: added to the differences.
        swap: let d(p, n) take the place of d(a, n) where it is smaller (Balntas et al. 2016).
        reduction: "mean", "sum", or "none".

    Returns:
        [] loss, or [N] with reduction="none"; float32, computed so for half precision too (float64 for float64).

    Raises:
        TypeError: integer embeddings, two dtypes, a margin, p or eps that is no number.
        ValueError: two shapes or devices, an empty batch, a margin, p or eps out of range, an unknown reduction.
    """
    anchor, positive, negative = autocast_together(anchor, positive, negative, elementwise=True)
    check_embeddings("anchor", anchor)
    for name, x in (("positive", positive), ("negative", negative)):
        check_embeddings(name, x)
        check_alike(name, x, "anchor", anchor)
    for name, value in (("margin", margin), ("p", p), ("eps", eps)):
        check_number(name, value, high=torch.inf if name == "p" else 1e30)
    check_reduction(reduction)
    a, b, c = (x.to(statistics_dtype(x)) for x in (anchor, positive, negative))
    far = F.pairwise_distance(a, c, p, eps)
    if swap:
        far = torch.minimum(far, F.pairwise_distance(b, c, p, eps))
    return reduce((F.pairwise_distance(a, b, p, eps) - far + margin).clamp_min(0), reduction)


def triplet_margin_in_batch(
    embeddings: Tensor,
    labels: Tensor,
    margin: float = 0.05,
    *,
    mining: str = "all",
    distance: str = "euclidean",
    normalize: bool = True,
    reduction: str = "nonzero",
) -> Tensor:
    """max(d(a, p) − d(a, n) + margin, 0) of the triplets in a batch: labels of a and p equal, of n another.

    Neither the [N, N] distances nor the triplets are held: memory is O(N·D).

    Args:
        embeddings: [N, D]: float32, float16, bfloat16 or float64.
        labels: [N] integers.
        margin: any number.
        mining: "all" triplets; "semi-hard", those whose negative is farther than the positive (Schroff et al. 2015);
            "hard", of every anchor the farthest positive and the nearest negative (Hermans et al. 2017, eq. 5). Anchors
            without a positive or without a negative have no triplet. "hard" takes N²·D operations and gathers; the
            others 8·N²·D operations and a comparison for every triplet.
        distance: "euclidean" ‖x − y‖, or "cosine" 1 − ⟨x, y⟩.
        normalize: divide the rows by their length first.
        reduction: "nonzero", the mean over the triplets above 0 (pytorch-metric-learning's AvgNonZeroReducer; 0 if
            there are none); "mean" over all mined triplets (for "semi-hard" those within the margin: as "nonzero");
            "sum"; or "none", the sum of every anchor.

    Returns:
        [] loss, or [N] with reduction="none"; float32 (float64 for float64 embeddings). Rows that coincide have a
        distance of gradient 0. Second derivatives of "all" and "semi-hard" are not supported.

    Raises:
        TypeError: integer embeddings, float labels, a margin that is no number.
        ValueError: labels of another length or device, an empty batch, an infinite margin, an unknown mining,
            distance or reduction.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    check_embeddings("embeddings", embeddings)
    ids = check_ids("labels", labels, embeddings.shape[0], "embeddings", embeddings)
    if ids is None:
        raise TypeError(f"labels must be an integer Tensor [{embeddings.shape[0]}]; got None")
    check_number("margin", margin, low=-1e30)
    for name, value, choices in (
        ("mining", mining, MINING),
        ("distance", distance, DISTANCES),
        ("reduction", reduction, BATCH_REDUCTIONS),
    ):
        check_choice(name, value, choices)
    dtype, euclidean = statistics_dtype(embeddings), distance == "euclidean"
    u = unit(embeddings, normalize)
    same = count_equal(ids, ids)
    triplets = (same - 1) * (len(ids) - same)  # [N] of every anchor
    if mining == "hard":
        triplets = triplets.clamp_max(1)
        loss = _hardest(u, ids, triplets > 0, margin, euclidean, embeddings.dtype)
        active = (loss > 0).double()
    else:
        name = backend.choose("similarity", embeddings)
        loss, active = torch.ops.pyssl_fast.triplets(
            u.to(embeddings.dtype), ids, margin, euclidean, mining == "semi-hard", name
        )
    if reduction == "none":
        return loss.to(dtype)
    if reduction == "sum":
        return loss.sum().to(dtype)
    among = triplets.double() if reduction == "mean" and mining != "semi-hard" else active
    return (loss.sum() / among.sum().clamp_min(1)).to(dtype)


def _hardest(u: Tensor, ids: Tensor, valid: Tensor, margin: float, euclidean: bool, dtype: torch.dtype) -> Tensor:
    """[N] float64 loss of every anchor's hardest triplet, 0 where none is valid; sought in dtype."""
    q = u.detach()
    offset = -0.5 * q.square().sum(1) if euclidean else q.new_zeros(len(q))
    q = q.to(dtype)
    indices = torch.ops.pyssl_fast.hardest(q, ids, offset, backend.choose("similarity", q))
    # Whether there is a triplet is read from the labels: an anchor that is not a number may find none (−1).
    negative, positive = (u[index.clamp_min(0)] for index in indices)
    if euclidean:
        near, far = (torch.linalg.vector_norm(u - x, dim=1) for x in (positive, negative))
    else:
        near, far = (1 - (u * x).sum(1) for x in (positive, negative))
    return torch.where(valid, (near - far + margin).clamp_min(0), 0).double()
