"""Augment family on the CPU: see csrc/cpu/augment/augment.h."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyssl_fast import _cpu
from pyssl_fast.kernels.reference import augment as reference
from pyssl_fast.kernels.samples import PIXELS, normalisation, pictures, table

if TYPE_CHECKING:
    from pyssl_fast.augment.parameters import Images, Parameters


def apply(images: Images, parameters: Parameters, out: Tensor) -> None:
    """As the twin; float64 is the twin's own."""
    if images[0].dtype not in PIXELS or out.dtype not in PIXELS:
        reference.apply(images, parameters, out)
        return
    places, samples = pictures(images), table(parameters)
    mean, std = normalisation(parameters, out.shape[1])
    _cpu.augment(
        len(out),
        out.shape[1],
        *parameters.size,
        places.data_ptr(),
        samples.data_ptr(),
        PIXELS[images[0].dtype],
        parameters.interpolation == "bicubic",
        parameters.antialias,
        mean.data_ptr(),
        std.data_ptr(),
        parameters.erase_value,
        PIXELS[out.dtype],
        out.data_ptr(),
        out.stride(),
        torch.get_num_threads(),
    )
