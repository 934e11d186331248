"""Barlow Twins: the cross-correlation of two views towards the identity."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import check_number
from pyssl_fast.functional.covariance.views import check_views, learns
from pyssl_fast.ops.similarity import statistics_dtype


class BarlowTwinsTerms(NamedTuple):
    """The terms of Barlow Twins' loss, [] each, neither weighted nor scaled, with their gradients."""

    invariance: Tensor
    redundancy: Tensor


# The loss; with return_terms=True the pair (loss, its terms). `Any` spares callers a cast for either.
Result: TypeAlias = Tensor | Any


def barlow_twins(
    z0: Tensor,
    z1: Tensor,
    lambda_param: float = 5e-3,
    *,
    eps: float = 1e-5,
    scale_loss: float = 1.0,
    return_terms: bool = False,
) -> Result:
    """Barlow Twins (Zbontar et al. 2021, eq. 1).

    With A and B the views' columns less their means, divided by √(biased variance + eps) as batch normalisation has it,
    and C = AᵀB / N

        invariance = Σ_d (1 − C_dd)²
        redundancy = Σ_{d≠d'} C_dd'²
        loss       = scale_loss·(invariance + lambda_param·redundancy)

    One `cross_correlation`, on the cheaper side of C: N·D·min(N, D)·6 operations for forward and backward.

    Args:
        z0, z1: [N, D], N ≥ 2, the two views, alike: float32, float16, bfloat16 or float64.
        lambda_param: ≥ 0, the weight of the redundancy: 5e-3 in the paper and lightly, 0.0051 in the authors' code.
        eps: > 0, added to the variances: a constant column correlates with none.
        scale_loss: > 0, factor of the loss: 0.024 in the authors' code, 0.025 in solo-learn, 1 in lightly.
        return_terms: return (loss, `BarlowTwinsTerms`).

    Returns:
        [] loss; float32 (float64 for float64 embeddings). Second derivatives are not supported.

    Raises:
        TypeError: integer embeddings, different dtypes, a weight that is no number.
        ValueError: different shapes or devices, fewer than two rows, no columns, a number out of its range.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    z0, z1 = check_views(z0, z1)
    check_number("lambda_param", lambda_param, low=0)
    check_number("eps", eps)
    check_number("scale_loss", scale_loss)
    samples = z0.shape[0]
    diagonal, off_diagonal, _, _ = torch.ops.pyssl_fast.cross_correlation(
        z0, z1, eps, learns(z0, z1), backend.choose("covariance", z0)
    )
    invariance = (1 - diagonal / samples).square().sum()
    redundancy = off_diagonal / samples**2
    dtype = statistics_dtype(z0)
    loss = (scale_loss * (invariance + lambda_param * redundancy)).to(dtype)
    return (loss, BarlowTwinsTerms(invariance.to(dtype), redundancy.to(dtype))) if return_terms else loss
