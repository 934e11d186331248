"""What the losses of the covariance family share: two views of one batch, and their statistics over it."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast.functional.checks import autocast_together, check_alike, check_embeddings, check_two_rows


def check_views(z0: Tensor, z1: Tensor, shape: str = "[N, D]") -> tuple[Tensor, Tensor]:
    """Two views of N ≥ 2 samples, alike; two dtypes meet in float32 where autocast is on."""
    z0, z1 = autocast_together(z0, z1, elementwise=True)
    check_embeddings("z0", z0, shape)
    check_embeddings("z1", z1, shape)
    check_alike("z1", z1, "z0", z0)
    check_two_rows("z0", z0)
    return z0, z1


def positions(z: Tensor) -> Tensor:
    """[N, …, D] as [N, E, D]."""
    return z.unsqueeze(1) if z.dim() == 2 else z.flatten(1, -2)


def learns(*views: Tensor | None) -> bool:
    """Whether backward may come."""
    return torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in views)
