"""Losses of points on the sphere: cosine similarity, alignment, uniformity, KoLeo."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import (
    autocast_together,
    check_alike,
    check_count,
    check_embeddings,
    check_number,
    check_reduction,
    check_two_rows,
    reduce,
)
from pyssl_fast.functional.similarity.neighbours import nearest_neighbours
from pyssl_fast.functional.similarity.softmax import factor, log_of, unit
from pyssl_fast.ops.similarity import NEGATIVES, ROWS, statistics_dtype


def negative_cosine_similarity(
    x0: Tensor, x1: Tensor, dim: int = 1, eps: float = 1e-8, *, reduction: str = "mean"
) -> Tensor:
    """−cos(x0, x1), the loss of SimSiam (Chen & He 2021, eq. 1). Nothing is detached: that is the caller's to do.

    Args:
        x0, x1: any shape with a dimension `dim`, alike: float32, float16, bfloat16 or float64.
        dim: the one along which the vectors lie.
        eps: shorter vectors are divided by this.
        reduction: "mean", "sum", or "none".

    Returns:
        [] loss, or x0's shape without `dim` with reduction="none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError: inputs that are no floating-point tensors, or of two dtypes.
        ValueError: empty inputs, two shapes or devices, no such dim, a bad eps, an unknown reduction.
    """
    x0, x1 = autocast_together(x0, x1, elementwise=True)
    for name, x in (("x0", x0), ("x1", x1)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name} must be a floating-point Tensor; got {getattr(x, 'dtype', type(x).__name__)}")
        if x.numel() == 0:
            raise ValueError(f"{name} must not be empty; got shape {list(x.shape)}")
    check_alike("x1", x1, "x0", x0)
    if not -x0.dim() <= dim < x0.dim():
        raise ValueError(f"dim must be one of x0's {x0.dim()} dimensions; got {dim}")
    check_number("eps", eps)
    check_reduction(reduction)
    dtype = statistics_dtype(x0)
    return reduce(-F.cosine_similarity(x0.to(dtype), x1.to(dtype), dim, eps), reduction)


def alignment(z0: Tensor, z1: Tensor, alpha: float = 2.0, *, reduction: str = "mean") -> Tensor:
    """‖u0 − u1‖^alpha of the normalised rows (Wang & Isola 2020, eq. 1).

    Args:
        z0, z1: [N, D] the two views, alike: float32, float16, bfloat16 or float64, not normalised.
        alpha: > 0.
        reduction: "mean", "sum", or "none".

    Returns:
        [] loss, or [N] with reduction="none"; float32 (float64 for float64 embeddings).

    Raises:
        TypeError: integer embeddings, two dtypes, an alpha that is no number.
        ValueError: two shapes or devices, an empty batch, an alpha that is not positive, an unknown reduction.
    """
    z0, z1 = autocast_together(z0, z1, elementwise=True)
    check_embeddings("z0", z0)
    check_embeddings("z1", z1)
    check_alike("z1", z1, "z0", z0)
    check_number("alpha", alpha)
    check_reduction(reduction)
    # The difference, since 2 − 2cos of views that agree has no digits left.
    apart = torch.linalg.vector_norm(unit(z0) - unit(z1), dim=1)
    if alpha != 1:
        # 0^alpha has an infinite slope below alpha = 1, where the norm's is 0: rows that coincide get none.
        apart = torch.where(apart == 0, 0, torch.where(apart == 0, 1, apart).pow(alpha))
    return reduce(apart, reduction).to(statistics_dtype(z0))


def uniformity(z: Tensor, t: float | Tensor = 2.0) -> Tensor:
    """log of the mean over the pairs i < j of exp(−t·‖u_i − u_j‖²), u the normalised rows (Wang & Isola 2020, eq. 2).

    The N(N − 1)/2 distances are never held: memory is O(N·D). One symmetric `contrast`: 4·N²·D operations for
    forward and backward. The value is right to some 1e-7·t (float32): of a batch that has nearly collapsed it
    keeps fewer digits than the distances themselves would. A row of zeros counts as perpendicular to every other.

    Args:
        z: [N, D], N ≥ 2: float32, float16, bfloat16 or float64, not normalised.
        t: the sharpness, a number or a Tensor with one element, which gets its exact gradient.

    Returns:
        [] loss, −4t to 0; float32 (float64 for float64 embeddings). Second derivatives are not supported.

    Raises:
        TypeError: integer embeddings, a t that is no number.
        ValueError: fewer than two rows, no columns, a t that is infinite or NaN.
    """
    check_embeddings("z", z)
    check_two_rows("z", z)
    scale = 2.0 * factor("t", t, z)  # −t‖u − v‖² = 2t⟨u, v⟩ − 2t
    lse, _, _ = torch.ops.pyssl_fast.contrast(
        z,
        None,
        scale,
        None,
        None,
        None,
        None,
        [ROWS | NEGATIVES],
        [1.0],
        0,
        True,
        False,
        backend.choose("similarity", z),
    )
    pairs = z.shape[0] * (z.shape[0] - 1)
    return (lse.logsumexp(0) - log_of(pairs, z) - scale.double()).to(statistics_dtype(z))


def koleo(x: Tensor, p: float = 2, eps: float = 1e-8, *, topk: int = 1, reduction: str = "mean") -> Tensor:
    """−log of the distance to the nearest other row, the Kozachenko-Leonenko regulariser (Sablayrolles et al. 2019).

    The rows are normalised; the neighbour is the one with the largest cosine similarity, found without the [N, N]
    similarities, half of which are formed: N²·D operations, and memory O(N·D·topk). The distance itself is taken from
    the rows' difference, in float32 at least: near duplicates keep a finite loss in half precision too.

    Args:
        x: [N, D], N > topk: float32, float16, bfloat16 or float64.
        p: norm of the distance ‖u − v + eps‖_p, inf too.
        eps: added to the difference and to the distance; shorter rows are divided by it.
        topk: the number of nearest rows whose distances count (DINOv3's KoLeo).
        reduction: "mean", "sum", or "none".

    Returns:
        [] loss, or [N, topk] with reduction="none"; float32 (float64 for float64 rows).

    Raises:
        TypeError: integer rows, a topk that is no int.
        ValueError: no more rows than topk, an empty matrix, a bad p or eps, an unknown reduction.
    """
    check_embeddings("x", x)
    check_two_rows("x", x)
    check_number("p", p, high=torch.inf)
    check_number("eps", eps)
    check_reduction(reduction)
    check_count("topk", topk)
    if topk >= x.shape[0]:
        raise ValueError(f"topk must be {x.shape[0] - 1} at most, the number of other rows; got {topk}")
    u = F.normalize(x.to(statistics_dtype(x)), dim=1, eps=eps)
    _, index = nearest_neighbours(u.detach().to(x.dtype), None, topk, normalize=False)
    # [N, topk]; where x is not a number there may be no neighbour (−1), and the row's own NaN is the answer.
    near = u.index_select(0, index.clamp_min(0).view(-1)).view(-1, topk, u.shape[1])
    loss = -(F.pairwise_distance(u[:, None], near, p, eps) + eps).log()
    return reduce(loss, reduction).to(statistics_dtype(x))
