"""Images and their parameters as tables that kernels read: a row per sample, as csrc/samples.h has them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyssl_fast.augment.parameters import channels_last

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
        places = _steps(len(images), _planar(images).stride(), images.element_size()).clone()
        places[:, 0] += images.data_ptr()
        return places
    return torch.tensor([(x.data_ptr(), *_planar(x).stride()) for x in images], device="cpu")


def sizes_of(images: Images) -> Tensor:
    """[B, 2] int64: each image's height and width. Not to be changed."""
    if isinstance(images, Tensor):
        return _equal(len(images), *_planar(images).shape[2:])
    return torch.tensor([_planar(x).shape[1:] for x in images], device="cpu")


def _planar(x: Tensor) -> Tensor:
    """An image or a batch with its channels before its rows."""
    return x.movedim(-1, -3) if channels_last(x) else x


# What batch after batch needs alike: made anew it took 57 µs of the 131 that Python spent on 64 images.


@functools.lru_cache(maxsize=64)
def _steps(count: int, strides: tuple[int, ...], element_size: int) -> Tensor:
    places = torch.tensor(strides, device="cpu").repeat(count, 1)
    places[:, 0] = torch.arange(count, device="cpu") * (strides[0] * element_size)
    return places


@functools.lru_cache(maxsize=64)
def _equal(count: int, height: int, width: int) -> Tensor:
    return torch.tensor([height, width], device="cpu").repeat(count, 1)


@functools.lru_cache(maxsize=64)
def normalisation(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> Tensor:
    """[2, channels] float64, on the CPU: mean and standard deviation of each. Not to be changed."""
    numbers = torch.tensor([[0.0], [1.0]], dtype=torch.float64, device="cpu").repeat(1, channels)
    if mean:
        given = torch.tensor([mean, std], dtype=torch.float64, device="cpu")
        numbers[:, : len(mean) if len(mean) > 1 else channels] = given
    return numbers
