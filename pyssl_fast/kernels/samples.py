"""Images and their parameters as tables that kernels read: a row per sample, as csrc/samples.h has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyssl_fast.augment.parameters import Images, Parameters

# Of images and results, as csrc/samples.h numbers them.
PIXELS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}


def table(p: Parameters) -> Tensor:
    """[B, 33] float64, contiguous, on the parameters' device, which is not waited for."""
    left, half, right = p.turns == 1, p.turns == 2, p.turns == 3
    # Booleans, numbers of 64 and of 32 bits: together they are float64.
    flags = torch.stack(
        [
            p.horizontal_flip ^ (left | half),
            p.vertical_flip ^ (right | half),
            left | right,  # a quarter turn is a flip and a transpose
            p.moved,
        ],
        1,
    )
    grey = torch.stack([p.grey, torch.full_like(p.grey, p.grey_first)], 1)
    threshold = torch.where(p.solarize, p.threshold, torch.inf)
    levels = torch.where(p.bits > 0, 1 << p.bits, 0)
    # Clamped: an order on a GPU is not checked, and must not make torch stop the device.
    jittered = p.jitter.gather(1, p.order.clamp(0, 3))
    columns = [
        *(p.box, flags, p.inverse_affine().flatten(1)),
        *(torch.where(jittered, p.order, -1), p.factors, grey),
        torch.stack([p.sigma, torch.full_like(p.sigma, p.blur_kernel), threshold, p.invert, levels], 1),
        p.erase,
    ]
    return torch.cat(columns, 1)


def pictures(images: Images) -> Tensor:
    """[B, 4] int64: where an image begins, and the steps of its channels, rows and pixels, in elements."""
    if isinstance(images, Tensor):
        x = images if images.shape[1] in (1, 3, 4) else images.permute(0, 3, 1, 2)
        places = torch.tensor(x.stride()).repeat(len(x), 1)
        places[:, 0] = torch.arange(len(x)) * (x.stride(0) * x.element_size()) + x.data_ptr()
        return places
    planar = [x if x.shape[0] in (1, 3, 4) else x.permute(2, 0, 1) for x in images]
    return torch.tensor([(x.data_ptr(), *x.stride()) for x in planar])


def sizes_of(images: Images) -> Tensor:
    """[B, 2] int64: each image's height and width."""
    if isinstance(images, Tensor):
        shape = images.shape[2:] if images.shape[1] in (1, 3, 4) else images.shape[1:3]
        return torch.tensor(shape).repeat(len(images), 1)
    return torch.tensor([x.shape[1:] if x.shape[0] in (1, 3, 4) else x.shape[:2] for x in images])


def normalisation(p: Parameters, channels: int) -> Tensor:
    """[2, channels] float64, on the CPU: mean and standard deviation of each."""
    numbers = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(1, channels)
    if p.mean:
        numbers[:, : len(p.mean) if len(p.mean) > 1 else channels] = torch.tensor([p.mean, p.std], dtype=torch.float64)
    return numbers
