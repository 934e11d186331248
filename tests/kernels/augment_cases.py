"""The augment family's kernels against the twin: on the CPU, on a GPU, and the GPU's on host threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyssl_fast.augment import Parameters, plain
from pyssl_fast.kernels.reference import augment as reference

# Full scale is 1, or 1 / std. A hue is rounded where two channels are nearly equal, as the twin's is.
ATOL = 1e-5
LEVEL = {torch.uint8: 1.0, torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # what rounding moves


def random_parameters(
    sizes: Sequence[tuple[int, int]], size: tuple[int, int], generator: torch.Generator, **changes: Any
) -> Parameters:
    """A chain of everything, drawn without a recipe, so that each number comes up."""
    n = len(sizes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    def coin(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) < 0.5

    extent = torch.tensor(sizes)
    length = (uniform(0, 1, 2) * extent).long().clamp(min=1)
    start = (uniform(0, 1, 2) * (extent - length + 1)).long().minimum(extent - length)
    jitter = uniform(0.3, 1.7, 4)
    jitter[:, 3] = (jitter[:, 3] - 1) * 0.7
    side = torch.tensor(size)
    erased = (uniform(0, 1, 2) * side).long()
    at = (uniform(0, 1, 2) * (side - erased + 1)).long().minimum(side - erased)
    taps = min(int(torch.randint(0, 16, (), generator=generator)) * 2 + 1, 2 * min(size) - 1)
    moved = coin() & coin()
    fields: dict[str, Any] = {
        "box": torch.cat([start, length], 1),
        "horizontal_flip": coin(),
        "vertical_flip": coin(),
        "turns": torch.randint(0, 4, (n,), generator=generator) if size[0] == size[1] else torch.arange(n) % 2 * 2,
        "angle": torch.where(moved, uniform(-180, 180), 0.0),
        "translate": torch.where(moved[:, None], uniform(-5, 5, 2), 0.0),
        "zoom": torch.where(moved, uniform(0.5, 2), 1.0),
        "shear": torch.where(moved[:, None], uniform(-20, 20, 2), 0.0),
        "order": torch.rand(n, 4, generator=generator).argsort(1),
        "jitter": coin(4),
        "factors": jitter,
        "grey": uniform(0, 1) < 0.2,
        "sigma": torch.where(coin(), uniform(0.1, 2), 0.0),
        "blur_kernel": taps,
        "invert": coin(),
        "erase": torch.cat([at, erased], 1),
        "erase_value": 0.25,
        "grey_first": bool(torch.rand((), generator=generator) < 0.5),
    }
    return plain(sizes, size, **{**fields, **changes})


def anything(
    sizes: Sequence[tuple[int, int]], size: tuple[int, int], generator: torch.Generator, **changes: Any
) -> Parameters:
    """`random_parameters`, solarized and posterized too."""
    n = len(sizes)
    posterized = torch.rand(n, generator=generator) < 0.3
    fields: dict[str, Any] = {
        "solarize": torch.rand(n, generator=generator) < 0.5,
        "threshold": 0.2 + 0.6 * torch.rand(n, generator=generator),
        "bits": torch.where(posterized, torch.randint(1, 9, (n,), generator=generator), 0),
    }
    return random_parameters(sizes, size, generator, **{**fields, **changes})


def near_a_step(images: Sequence[Tensor], parameters: Parameters) -> Tensor:
    """[B, C, height, width] bool: pixels within 1e-5 of where solarize or posterize leaps."""
    p = parameters
    no, none = torch.zeros_like(p.solarize), torch.zeros_like(p.bits)
    before = dataclasses.replace(p, solarize=no, invert=no, bits=none, erase=torch.zeros_like(p.erase), mean=(), std=())
    x = torch.empty(len(p), channels(images), *p.size)
    reference.apply(images, before, x)
    threshold, levels = p.threshold.view(-1, 1, 1, 1), (1 << p.bits).view(-1, 1, 1, 1)
    near = p.solarize.view(-1, 1, 1, 1) & ((x - threshold).abs() < ATOL)
    x = torch.where(p.solarize.view(-1, 1, 1, 1) & (x >= threshold), 1 - x, x)
    x = torch.where(p.invert.view(-1, 1, 1, 1), 1 - x, x)
    step = (x * levels).round()  # of those from 1 to levels − 1; 0 and 1 are clamped
    near_level = ((x * levels - step).abs() < ATOL * levels) & (step > 0) & (step < levels)
    return near | ((p.bits > 0).view(-1, 1, 1, 1) & near_level)


def channels(images: Sequence[Tensor]) -> int:
    first = images[0]
    return first.shape[0] if first.shape[0] in (1, 3, 4) else first.shape[-1]


def assert_near(ours: Tensor, theirs: Tensor, images: Any, parameters: Parameters) -> None:
    """Within 1e-5 of full scale, or a rounding to ours' dtype. Pixels near a step are left out, and are few."""
    scale = 1 / min(parameters.std) if parameters.std else 1.0
    if bool(parameters.moved.any()):
        # Where a pixel comes from is rounded to float32 by the twin too: in 224 pixels by 3e-5 of one, which is as much
        # of full scale from one pixel of noise to the next.
        scale *= max(1.0, max(parameters.size) / 64)
    left_out = near_a_step([x.cpu() for x in images], parameters)
    assert int(left_out.sum()) <= 0.02 * left_out.numel() + 3
    ours, theirs = ours.cpu(), theirs.cpu()
    largest = 1.0 if ours.dtype == torch.uint8 else max(1.0, float(theirs.double().abs().nan_to_num().max()))
    bound = LEVEL[ours.dtype] * largest or ATOL * scale
    difference = (ours.double() - theirs.double()).abs()
    difference[(ours.double() == theirs.double()) | (ours.isnan() & theirs.isnan())] = 0
    difference[left_out] = 0
    assert not bool(difference.isnan().any())
    assert float(difference.max()) <= bound, f"{float(difference.max()):.2e} > {bound:.2e}"


def check(kernels: ModuleType, images: Any, parameters: Parameters, out: Tensor | None = None) -> Tensor:
    """The kernels' result, which is the twin's."""
    if out is None:
        out = torch.empty(len(parameters), channels(images), *parameters.size, device=images[0].device)
    kernels.apply(images, parameters, out)
    theirs = torch.empty_like(out, device="cpu")
    reference.apply([x.cpu() for x in images], parameters.to("cpu"), theirs)
    assert_near(out, theirs, images, parameters.to("cpu"))
    return out


def pictures(
    sizes: Sequence[tuple[int, int]], of: torch.dtype = torch.uint8, count: int = 3, seed: int = 0
) -> list[Tensor]:
    """Random images [C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    each = [torch.randint(256, (count, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    return each if of == torch.uint8 else [(x / 255).to(of) for x in each]
