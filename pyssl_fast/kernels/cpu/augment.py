"""Augment family on the CPU: see csrc/cpu/augment/augment.h and csrc/cpu/parameters.h."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyssl_fast import _cpu
from pyssl_fast.augment.parameters import FIELDS, TENSORS
from pyssl_fast.kernels.reference import augment as reference
from pyssl_fast.kernels.samples import PIXELS, normalisation, pictures, sizes_of

if TYPE_CHECKING:
    from pyssl_fast.augment.parameters import Images, Parameters
    from pyssl_fast.augment.recipes import Recipe
    from pyssl_fast.augment.sampling import Array


def apply(images: Images, parameters: Parameters, out: Tensor) -> None:
    """As the twin; float64 is the twin's own. The parameters' values are checked here."""
    if images[0].dtype not in PIXELS or out.dtype not in PIXELS:
        parameters.check(images)
        reference.apply(images, parameters, out)
        return
    places, samples = pictures(images), table(parameters, images)
    mean, std = normalisation(parameters.mean, parameters.std, out.shape[1])
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


def table(p: Parameters, images: Images) -> Tensor:
    """As `samples.table`, checked, in one call, where torch's take 0.17 ms of 64 samples and as long again to check."""
    columns = [getattr(p, name).contiguous() for name in FIELDS]
    sizes = sizes_of(images)
    rows = torch.empty(len(p), _cpu.SAMPLE_NUMBERS, dtype=torch.float64, device="cpu")
    places = [x.data_ptr() for x in columns]
    if not _cpu.pack(places, len(p), sizes.data_ptr(), *p.size, p.blur_kernel, p.grey_first, rows.data_ptr()):
        p.check(images)  # says what is wrong
        raise AssertionError("parameters that pass their checks were refused")
    return rows


def draw(recipe: Recipe, sizes: Array, index: Tensor, seed: int, epoch: int, view: int) -> dict[str, Tensor]:
    """As the twin, in one call: 0.03 ms of 64 samples instead of 0.25."""
    n = len(sizes)
    drawn = {
        name: torch.empty(n if columns is None else (n, columns), dtype=dtype, device="cpu")
        for name, (dtype, columns) in TENSORS.items()
    }
    size, index, numbers = torch.from_numpy(sizes).contiguous(), index.contiguous(), _numbers(recipe)
    places = [x.data_ptr() for x in drawn.values()]
    _cpu.draw(numbers.data_ptr(), n, size.data_ptr(), index.data_ptr(), seed, epoch, view, places)
    return drawn


@functools.lru_cache(maxsize=256)
def _numbers(r: Recipe) -> Tensor:
    """A Recipe of csrc/cpu/parameters.h."""
    height, width = r.size
    used, least, span = reference.factors(r)
    numbers = [
        *(height, width, *r.scale, *r.ratio, *map(math.log, r.ratio)),
        *(r.horizontal_flip, r.vertical_flip, r.turns),
        *(r.affine, r.degrees, r.translate[0] * width, r.translate[1] * height, *r.zoom, r.shear),
        *(r.jitter, *used, *least, *span),
        *(r.grey, r.blur, *r.sigma, r.solarize, r.threshold, r.invert, r.posterize, r.bits),
        *(r.erase, *r.erase_scale, *map(math.log, r.erase_ratio)),
    ]
    assert len(numbers) == _cpu.RECIPE_NUMBERS
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")
