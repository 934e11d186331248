"""The spectral contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast.functional.checks import (
    autocast_together,
    check_alike,
    check_embeddings,
    check_number,
    check_two_rows,
)
from pyssl_fast.ops.similarity import statistics_dtype


def spectral_contrastive(z0: Tensor, z1: Tensor, mu: float = 1.0) -> Tensor:
    """The spectral contrastive loss (HaoChen et al. 2021, eq. 6) with its authors' clipping.

    Rows longer than √mu are shortened to it. With s_ij = ⟨z0_i, z1_j⟩ of these

        loss = (−2·mean_i s_ii + mean_{i≠j} s_ij²) / mu

    The squares are summed on the cheaper side: [N, N] products where N is small, else ‖Z0 Z1ᵀ‖² = ⟨Z0ᵀZ0, Z1ᵀZ1⟩ with
    [D, D] Grams. Memory is O(N·D) on both, and 6·N·D·min(N, 2D) operations do.

    Args:
        z0, z1: [N, D], N ≥ 2, the two views, alike: float32, float16, bfloat16 or float64, not normalised.
        mu: > 0.

    Returns:
        [] loss; float32 (float64 for float64 embeddings).

    Raises:
        TypeError: integer embeddings, two dtypes, a mu that is no number.
        ValueError: two shapes or devices, fewer than two rows, no columns, a mu that is not positive.
    """
    z0, z1 = autocast_together(z0, z1)
    check_embeddings("z0", z0)
    check_embeddings("z1", z1)
    check_alike("z1", z1, "z0", z0)
    check_two_rows("z0", z0)
    check_number("mu", mu)
    u, v = clip_length(z0, mu**0.5), clip_length(z1, mu**0.5)
    rows, columns = u.shape
    own = (u * v).sum(1, dtype=torch.float64)  # s_ii
    # The Grams are in float64, half as fast: in time the sides are even at N = 3·D (26 ms each for D = 256, one core);
    # beyond 2·D the pairs would take more room than the rows.
    squares = _squares_by_pairs(u, v) if rows <= 2 * columns else _squares_by_grams(u, v, own)
    return ((squares / (rows * (rows - 1)) - 2 * own.mean()) / mu).to(u.dtype)


def _squares_by_pairs(u: Tensor, v: Tensor) -> Tensor:
    """Σ_{i≠j} s_ij² from [N, N] products, whose diagonal is masked."""
    s = u @ v.T
    return s.masked_fill(torch.eye(len(s), dtype=torch.bool, device=s.device), 0).square().sum(dtype=torch.float64)


def _squares_by_grams(u: Tensor, v: Tensor, own: Tensor) -> Tensor:
    """Σ_{i≠j} s_ij² from [D, D] Grams: a total less its diagonal, hence in float64."""
    u, v = u.double(), v.double()
    return ((u.T @ u) * (v.T @ v)).sum() - own.square().sum()


def clip_length(z: Tensor, most: float) -> Tensor:
    """z with rows of at most that length, float32 (float64 for float64). Lengths in float64: none overflows."""
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True, dtype=torch.float64)
    dtype = statistics_dtype(z)
    return z.to(dtype) * (most / length.clamp_min(most)).to(dtype)
