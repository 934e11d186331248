"""Augment family on the CPU: see csrc/cpu/augment/augment.h."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyssl_fast import _cpu
from pyssl_fast.kernels.reference import augment as reference
from pyssl_fast.kernels.samples import table

if TYPE_CHECKING:
    from pyssl_fast.augment.parameters import Images, Parameters

DTYPES = (torch.uint8, torch.float32)  # of images; of others the twin


def apply(images: Images, parameters: Parameters, out: Tensor) -> None:
    """As the twin; turned and rotated samples are the twin's own."""
    turned = (parameters.turns != 0) | parameters.moved
    if images[0].dtype not in DTYPES or bool(turned.all()):
        reference.apply(images, parameters, out)
        return
    direct = out.dtype == torch.float32 and out.is_contiguous()
    target = out if direct else torch.empty(out.shape, dtype=torch.float32)
    _apply([x if x.shape[0] in (1, 3, 4) else x.permute(2, 0, 1) for x in images], parameters, target)
    if not direct:
        out.copy_((target * 255).round_().clamp_(0, 255) if out.dtype == torch.uint8 else target)
    for i in turned.nonzero()[:, 0].tolist():
        reference.apply([images[i]], parameters[i], out[i : i + 1])


def _lies_flat(x: Tensor) -> bool:
    """Whether the numbers of a line follow each other, of one channel or of all."""
    return x.stride(2) == 1 or (x.stride(0) == 1 and x.stride(2) == x.shape[0])


def _apply(pictures: list[Tensor], p: Parameters, out: Tensor) -> None:
    """pictures: [C, H, W] of any strides. out: float32, contiguous."""
    pictures = [x if _lies_flat(x) else x.contiguous() for x in pictures]
    places = torch.tensor([(x.data_ptr(), *x.stride()) for x in pictures])
    mean, std = (torch.full((out.shape[1],), fill, dtype=torch.float64) for fill in (0.0, 1.0))
    if p.mean:
        n = len(p.mean) if len(p.mean) > 1 else out.shape[1]
        mean[:n], std[:n] = (torch.tensor(x, dtype=torch.float64) for x in (p.mean, p.std))
    samples = table(p)
    is_bytes = pictures[0].dtype == torch.uint8
    _cpu.augment(
        len(pictures),
        out.shape[1],
        *p.size,
        places.data_ptr(),
        samples.data_ptr(),
        is_bytes,
        p.interpolation == "bicubic",
        p.antialias,
        1 / 255 if is_bytes else 1.0,
        mean.data_ptr(),
        std.data_ptr(),
        p.erase_value,
        out.data_ptr(),
        torch.get_num_threads(),
    )
