"""Similarity family on the CPU: see csrc/cpu/similarity.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast import _cpu
from pyssl_fast.kernels.cpu.pointers import dtype_code, precision_code, rows


def nt_xent(z: Tensor, scale: Tensor, views: int) -> tuple[Tensor, Tensor, Tensor]:
    z = rows(z)
    nll, shift, negative_sum = (z.new_empty(z.shape[0], dtype=torch.float32) for _ in range(3))
    _cpu.nt_xent(
        z.data_ptr(),
        dtype_code(z),
        z.stride(0),
        z.shape[0],
        z.shape[1],
        views,
        scale.item(),
        nll.data_ptr(),
        shift.data_ptr(),
        negative_sum.data_ptr(),
        precision_code(z),
        torch.get_num_threads(),
    )
    return nll, shift, negative_sum


def nt_xent_backward(
    grad_nll: Tensor, z: Tensor, scale: Tensor, shift: Tensor, negative_sum: Tensor, views: int
) -> tuple[Tensor, Tensor]:
    z, grad_nll = rows(z), grad_nll.float().contiguous()
    grad_z = z.new_empty(z.shape)
    grad_scale = _cpu.nt_xent_backward(
        grad_nll.data_ptr(),
        z.data_ptr(),
        dtype_code(z),
        z.stride(0),
        shift.data_ptr(),
        negative_sum.data_ptr(),
        z.shape[0],
        z.shape[1],
        views,
        scale.item(),
        grad_z.data_ptr(),
        grad_z.stride(0),
        precision_code(z),
        torch.get_num_threads(),
    )
    return grad_z, torch.full_like(scale, grad_scale)
