"""Similarity family, the operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyssl_fast.backend import kernels
from pyssl_fast.ops.registry import define


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---- nt_xent: rows of z against each other -------------------------------------------------------------------------


def _nt_xent(z: Tensor, scale: Tensor, views: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    nll, shift, negative_sum = kernels(backend, "similarity").nt_xent(z, scale, views)
    dtype = _statistics_dtype(z)
    return nll.to(dtype), shift.to(dtype), negative_sum.to(dtype)


def _nt_xent_fake(z: Tensor, scale: Tensor, views: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    row = z.new_empty(z.shape[0], dtype=_statistics_dtype(z))
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
        z, grad_nll, scale, shift, negative_sum, ctx.views, ctx.backend
    )
    needs_z, needs_scale, _, _ = ctx.needs_input_grad
    return grad_z if needs_z else None, grad_scale if needs_scale else None, None, None


def _nt_xent_backward(
    z: Tensor, grad_nll: Tensor, scale: Tensor, shift: Tensor, negative_sum: Tensor, views: int, backend: str
) -> tuple[Tensor, Tensor]:
    return kernels(backend, "similarity").nt_xent_backward(grad_nll, z, scale, shift, negative_sum, views)


def _nt_xent_backward_fake(
    z: Tensor, grad_nll: Tensor, scale: Tensor, shift: Tensor, negative_sum: Tensor, views: int, backend: str
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), torch.empty_like(scale)


# z [V·N, D] (views one after the other), scale [] = 1/temperature -> per row: nll, and what backward needs
define(
    "nt_xent(Tensor z, Tensor scale, int views, str backend) -> (Tensor nll, Tensor shift, Tensor negative_sum)",
    kernel=_nt_xent,
    fake=_nt_xent_fake,
    setup_context=_nt_xent_setup,
    backward=_nt_xent_autograd,
    autocast=True,
)
define(
    "nt_xent_backward(Tensor z, Tensor grad_nll, Tensor scale, Tensor shift, Tensor negative_sum, int views,"
    " str backend) -> (Tensor grad_z, Tensor grad_scale)",
    kernel=_nt_xent_backward,
    fake=_nt_xent_backward_fake,
)
