"""Similarity family, the operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyssl_fast.backend import kernels
from pyssl_fast.ops.registry import define


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Of losses, sums and scales that belong to x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---- nt_xent: rows of z against each other -------------------------------------------------------------------------


def _nt_xent(z: Tensor, scale: Tensor, views: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    if z.dim() != 2 or views < 2 or z.shape[0] == 0 or z.shape[0] % views:
        raise ValueError(f"z must be [views·N, D] with views ≥ 2 and N ≥ 1; got {list(z.shape)} with views={views}")
    nll, shift, negative_sum = kernels(backend, "similarity").nt_xent(z, scale, views)
    dtype = statistics_dtype(z)
    return nll.to(dtype), shift.to(dtype), negative_sum.to(dtype)


def _nt_xent_fake(z: Tensor, scale: Tensor, views: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    row = z.new_empty(z.shape[0], dtype=statistics_dtype(z))
    return row, torch.empty_like(row), torch.empty_like(row)


def _nt_xent_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, scale, ctx.views, ctx.backend = inputs
    _, shift, negative_sum = output
    ctx.mark_non_differentiable(shift, negative_sum)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(z, scale, shift, negative_sum)


def _nt_xent_autograd(ctx: Any, grad_nll: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None, None, None]:
    if grad_nll is None:
        return None, None, None, None
    z, scale, shift, negative_sum = ctx.saved_tensors
    grad_z, grad_scale = torch.ops.pyssl_fast.nt_xent_backward(
        grad_nll, z, scale, shift, negative_sum, ctx.views, ctx.backend
    )
    needs_z, needs_scale, _, _ = ctx.needs_input_grad
    return grad_z if needs_z else None, grad_scale if needs_scale else None, None, None


def _nt_xent_backward(
    grad_nll: Tensor, z: Tensor, scale: Tensor, shift: Tensor, negative_sum: Tensor, views: int, backend: str
) -> tuple[Tensor, Tensor]:
    return kernels(backend, "similarity").nt_xent_backward(grad_nll, z, scale, shift, negative_sum, views)


def _nt_xent_backward_fake(
    grad_nll: Tensor, z: Tensor, scale: Tensor, shift: Tensor, negative_sum: Tensor, views: int, backend: str
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), torch.empty_like(scale)


# z [M, D] of M = V·N rows, view after view; scale [] = 1/temperature -> per row: nll, and what backward needs.
# The fewest that will do: forward M²·D operations (half of S = z zᵀ) and M·D numbers read; backward 3·M²·D (half of S
# again, and ∂S z) and 2·M·D numbers read, M·D written.
define(
    "nt_xent(Tensor z, Tensor scale, int views, str backend) -> (Tensor nll, Tensor shift, Tensor negative_sum)",
    kernel=_nt_xent,
    fake=_nt_xent_fake,
    setup_context=_nt_xent_setup,
    backward=_nt_xent_autograd,
    autocast=True,
)
define(
    "nt_xent_backward(Tensor grad_nll, Tensor z, Tensor scale, Tensor shift, Tensor negative_sum, int views,"
    " str backend) -> (Tensor grad_z, Tensor grad_scale)",
    kernel=_nt_xent_backward,
    fake=_nt_xent_backward_fake,
)
