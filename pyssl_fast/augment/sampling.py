"""Random numbers that depend on what they are for alone, and the boxes drawn with them.

A number is a function of (seed, epoch, sample index, view, draw): batch, worker and rank do not change it.

NumPy computes: of one image, as a worker of a DataLoader draws, torch's calls took four times as long.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyssl_fast.augment.graphs import outside_graphs
from pyssl_fast.functional.checks import check_count

ATTEMPTS = 10
# SplitMix64 (Steele, Lea and Flood 2014, figure 16), as signed numbers: int64 products wrap.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)

Array = npt.NDArray[Any]


def _shift(x: Array, bits: int) -> Array:
    """x >> bits with zeros moved in; a shift of signed numbers repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(x: int) -> int:
    """As int64 has it."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix(x: Array) -> Array:
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


@outside_graphs
def seed_of(generator: torch.Generator | None = None, seed: int | None = None) -> int:
    """That seed; else one of 0 to 2⁶³ − 2, drawn from that generator, torch's own if None."""
    if seed is not None:
        if generator is not None:
            raise ValueError("seed or generator must be given, not both")
        return seed
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def uniform(draws: int, index: Array, seed: int, epoch: int = 0, view: int = 0) -> Array:
    """[N, draws] float64 of 0 to 1 (excluded): each sample's numbers.

    Each counter goes through SplitMix64's mixing, one after the other: no two draws of a sample share a state.

    Args:
        draws: how many, counted from 0.
        index: [N] int64: which samples of the data set.
        seed, epoch, view: whole numbers of 0 to 2⁶³ − 1.
    """
    state = _mix(index * 0 + (seed + _STEP))  # an array: numpy warns of single numbers that wrap
    state = _mix(state + _wrap((epoch + 1) * _STEP))
    state = _mix(state + (index + 1) * _STEP)
    state = _mix(state + _wrap((view + 1) * _STEP))
    return _shift(_mix(state[:, None] + (np.arange(draws) + 1) * _STEP), 11) * 2.0**-53


def check_counter(name: str, number: int) -> None:
    """A whole number of 0 to 2⁶³ − 1."""
    check_count(name, number, 0)
    if number >= 1 << 63:
        raise ValueError(f"{name} must be less than 2⁶³; got {number}")


def between(u: Array, low: float, high: float) -> Array:
    return low + (high - low) * u


def below(u: Array, count: Array) -> Array:
    """Whole numbers of 0 to count − 1, int64."""
    return np.minimum(np.floor(u * count).astype(np.int64), count - 1)


def _attempts(u: Array, sizes: Array, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[Array, Array]:
    """[N, ATTEMPTS] each: an area and its shape, drawn as torchvision draws them."""
    area = sizes.prod(1, keepdims=True) * between(u[:, :ATTEMPTS], *scale)
    shape = np.exp(between(u[:, ATTEMPTS : 2 * ATTEMPTS], math.log(ratio[0]), math.log(ratio[1])))
    return area, shape


def _take_first(fits: Array, height: Array, width: Array) -> tuple[Array, Array, Array]:
    row, first = np.arange(len(fits)), fits.argmax(1)
    return fits[row, first], height[row, first].astype(np.int64), width[row, first].astype(np.int64)


def resized_crop(u: Array, sizes: Array, scale: tuple[float, float], ratio: tuple[float, float]) -> Array:
    """[N, 4] int64: RandomResizedCrop's boxes (Szegedy et al. 2015), by torchvision's rule.

    Ten times an area of scale × the image's and a width : height whose logarithm is uniform; the first that fits lies
    anywhere in the image. Where none fits: the largest box in the middle whose shape is allowed.

    Args:
        u: [N, 2·10 + 2] uniform numbers.
        sizes: [N, 2] int64: height and width.
    """
    area, shape = _attempts(u, sizes, scale, ratio)
    width, height = np.sqrt(area * shape).round(), np.sqrt(area / shape).round()
    fits = (width > 0) & (width <= sizes[:, 1:]) & (height > 0) & (height <= sizes[:, :1])
    found, height, width = _take_first(fits, height, width)
    tall, wide = sizes.T
    narrow = wide / tall < ratio[0]
    broad = wide / tall > ratio[1]
    height = np.where(found, height, np.where(narrow, (wide / ratio[0]).round().astype(np.int64).clip(1), tall))
    width = np.where(found, width, np.where(broad, (tall * ratio[1]).round().astype(np.int64).clip(1), wide))
    top = np.where(found, below(u[:, -2], tall - height + 1), (tall - height) // 2)
    left = np.where(found, below(u[:, -1], wide - width + 1), (wide - width) // 2)
    return np.stack([top, left, height, width], 1)


def erased(u: Array, sizes: Array, scale: tuple[float, float], ratio: tuple[float, float]) -> Array:
    """[N, 4] int64: RandomErasing's boxes (Zhong et al. 2020, algorithm 1), by torchvision's rule; 0 where none fits.

    Args:
        u: [N, 2·10 + 2] uniform numbers.
        sizes: [N, 2] int64: height and width of the results.
        ratio: height : width.
    """
    area, shape = _attempts(u, sizes, scale, ratio)
    height, width = np.sqrt(area * shape).round(), np.sqrt(area / shape).round()
    fits = (height > 0) & (width > 0) & (height < sizes[:, :1]) & (width < sizes[:, 1:])
    found, height, width = _take_first(fits, height, width)
    top = below(u[:, -2], sizes[:, 0] - height + 1)
    left = below(u[:, -1], sizes[:, 1] - width + 1)
    return np.where(found[:, None], np.stack([top, left, height, width], 1), 0)
