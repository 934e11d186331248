"""Parameters of image operations as one table that kernels read: a row per sample, as csrc/samples.h has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyssl_fast.augment.parameters import Parameters


def table(p: Parameters) -> Tensor:
    """[B, 33] float64, contiguous, on the parameters' device, which is not waited for."""
    turned_left, halfway, turned_right = p.turns == 1, p.turns == 2, p.turns == 3
    first = (
        *p.box.unbind(1),
        p.horizontal_flip ^ (turned_left | halfway),
        p.vertical_flip ^ (turned_right | halfway),
        turned_left | turned_right,  # a quarter turn is a flip and a transpose
        p.moved,
        *p.inverse_affine().reshape(-1, 6).unbind(1),
        # Clamped: an order on a GPU is not checked, and must not make torch's gather stop the device.
        *torch.where(p.jitter.gather(1, p.order.clamp(0, 3)), p.order, -1).unbind(1),
        *p.factors.unbind(1),
        p.grey,
        torch.full_like(p.grey, p.grey_first),
        p.sigma,
        torch.full_like(p.sigma, p.blur_kernel),
        torch.where(p.solarize, p.threshold, torch.inf),
        p.invert,
        torch.where(p.bits > 0, 1 << p.bits, 0),
        *p.erase.unbind(1),
    )
    return torch.stack([x.double() for x in first], 1)
