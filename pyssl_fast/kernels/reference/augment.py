"""Augment family in plain PyTorch: a chain of image operations, sample by sample, and how recipes draw parameters.

The truth in tests.

The arithmetic is that of torchvision's transforms.v2.functional on float tensors: float32, float64 for float64 images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pyssl_fast.augment import sampling
from pyssl_fast.augment.parameters import channels_last

if TYPE_CHECKING:
    from pyssl_fast.augment.parameters import Images, Parameters
    from pyssl_fast.augment.recipes import Recipe
    from pyssl_fast.augment.sampling import Array

_LUMA = (0.2989, 0.587, 0.114)


def _planar(x: Tensor) -> Tensor:
    """[C, H, W] in float32, or float64, 0 to 1, of [C, H, W] or [H, W, C]."""
    if channels_last(x):
        x = x.permute(2, 0, 1)
    if x.dtype == torch.uint8:
        return x.float() / 255
    return x if x.dtype == torch.float64 else x.float()


def _move(x: Tensor, matrix: Tensor) -> Tensor:
    """The affine map of that inverse [2, 3], bilinear, zeros outside."""
    height, width = x.shape[-2:]
    column = torch.linspace((1 - width) * 0.5, (width - 1) * 0.5, width, dtype=x.dtype, device=x.device)
    row = torch.linspace((1 - height) * 0.5, (height - 1) * 0.5, height, dtype=x.dtype, device=x.device)
    place = [y.expand(height, width) for y in (column, row[:, None], torch.ones_like(column))]
    # Divided before the product, as torchvision does: at the borders a rounding error decides.
    half = torch.tensor([0.5 * width, 0.5 * height], dtype=x.dtype, device=x.device)
    grid = (torch.stack(place, 2).reshape(-1, 3) @ (matrix.to(half).mT / half)).reshape(1, height, width, 2)
    return F.grid_sample(x[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def _resize(x: Tensor, parameters: Parameters) -> Tensor:
    size, narrow = parameters.size, parameters.size[1] == 1
    if narrow:  # into one column torch's antialiased filters are wrong (2.14: all rows are the first); turned, not
        x, size = x.mT, (1, size[0])
    x = F.interpolate(
        x[None], size, mode=parameters.interpolation, antialias=parameters.antialias, align_corners=False
    )[0]
    return x.mT if narrow else x


def _grey(x: Tensor) -> Tensor:
    """[1, H, W]: luma of three channels, one channel as it is."""
    if x.shape[0] == 1:
        return x
    return (_LUMA[0] * x[0] + _LUMA[1] * x[1] + _LUMA[2] * x[2])[None]


def _blend(x: Tensor, other: Tensor, factor: float) -> Tensor:
    return (x * factor + other * (1 - factor)).clamp(0, 1)


def _hue(x: Tensor, shift: float) -> Tensor:
    """RGB → HSV, hue + shift of a full turn, → RGB.

    Torchvision divides by the brightest channel, and has NaN where a cubic filter has left that at 0 and another one
    below; here such a pixel is black.
    """
    red, green = x[0], x[1]
    low, high = x.amin(0), x.amax(0)
    flat = high == low
    saturation = (high - low) / torch.where(high == 0, 1, high)
    r, g, b = (high - x) / torch.where(flat, 1, high - low)
    sixth = torch.where(high == red, b - g, torch.where(high == green, 2 + r - b, 4 + g - r))
    hue = ((sixth * (1 / 6) + 1).fmod(1) + shift).remainder(1) * 6
    sector = hue.floor()
    part = hue - sector
    q = ((1 - saturation * part) * high).clamp(0, 1)
    t = ((saturation * part + (1 - saturation)) * high).clamp(0, 1)
    p = ((1 - saturation) * high).clamp(0, 1)
    k = sector.to(torch.int64).remainder(6)[None]
    choose = [(high, t, p), (q, high, p), (p, high, t), (p, q, high), (t, p, high), (high, p, q)]
    table = torch.stack([torch.stack(c) for c in choose])  # [6, 3, H, W]
    return table.gather(0, k[None].expand(1, 3, *k.shape[1:]))[0]


def _jitter(x: Tensor, operation: int, factor: float) -> Tensor:
    if operation == 0:
        return (x * factor).clamp(0, 1)
    if operation == 1:
        return _blend(x, _grey(x).mean(), factor)
    if x.shape[0] == 1:
        return x
    return _blend(x, _grey(x), factor) if operation == 2 else _hue(x, factor)


def gaussian_taps(sigma: float, taps: int, like: Tensor) -> Tensor:
    """[taps]: exp(−d² / 2σ²) over its sum."""
    distance = torch.linspace(-(taps - 1) / 2, (taps - 1) / 2, taps, dtype=like.dtype, device=like.device)
    return torch.softmax(-0.5 * (distance / sigma).square(), 0)


def _blur(x: Tensor, sigma: float, taps: int) -> Tensor:
    weight, side = gaussian_taps(sigma, taps, x), taps // 2
    x = F.pad(x[:, None], (side, side, side, side), mode="reflect")
    return F.conv2d(F.conv2d(x, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))[:, 0]


def _colour(x: Tensor, parameters: Parameters, i: int) -> Tensor:
    """Jitter and grey of [1 or 3, H, W]."""
    if parameters.grey_first and parameters.grey[i]:
        x = _grey(x).expand_as(x)
    for operation in parameters.order[i].tolist():
        if parameters.jitter[i, operation]:
            x = _jitter(x, operation, float(parameters.factors[i, operation]))
    if not parameters.grey_first and parameters.grey[i]:
        x = _grey(x).expand_as(x)
    return x


def _point(x: Tensor, parameters: Parameters, i: int) -> Tensor:
    """Solarize, invert and posterize."""
    if parameters.solarize[i]:
        x = torch.where(x >= float(parameters.threshold[i]), 1 - x, x)
    if parameters.invert[i]:
        x = 1 - x
    if parameters.bits[i]:
        levels = 1 << int(parameters.bits[i])
        x = (x * levels).floor().clamp(0, levels - 1) / levels
    return x


def _sample(x: Tensor, parameters: Parameters, i: int) -> Tensor:
    """[C, height, width], normalised. A fourth channel is moved and blurred, its values are not changed."""
    top, left, height, width = parameters.box[i].tolist()
    x = _planar(x)[:, top : top + height, left : left + width]
    if (height, width) != parameters.size:
        x = _resize(x, parameters)
    flipped = [d for d, flip in ((2, parameters.horizontal_flip), (1, parameters.vertical_flip)) if flip[i]]
    x = torch.rot90(x.flip(flipped), int(parameters.turns[i]), (1, 2))
    if parameters.moved[i]:
        x = _move(x, parameters[i].inverse_affine()[0])
    x = torch.cat([_colour(x[:3], parameters, i), x[3:]])
    if parameters.sigma[i]:
        x = _blur(x, float(parameters.sigma[i]), parameters.blur_kernel)
    x = torch.cat([_point(x[:3], parameters, i), x[3:]])
    if parameters.mean:
        n = 3 if len(parameters.mean) == 3 else x.shape[0]
        mean, std = (
            torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (parameters.mean, parameters.std)
        )
        x = torch.cat([(x[:n] - mean) / std, x[n:]])
    top, left, height, width = parameters.erase[i].tolist()
    x[:, top : top + height, left : left + width] = parameters.erase_value
    return x


def apply(images: Images, parameters: Parameters, out: Tensor) -> None:
    """out ← the chain of every image, rounded to out's dtype (uint8: 255·x, to the nearest, within 0 to 255).

    Args:
        images: [B, C, H, W], [B, H, W, C] or a list of [C, H, W] or [H, W, C].
        parameters: B samples, checked.
        out: [B, C, height, width], of any strides.
    """
    with torch.autocast(out.device.type, enabled=False):
        for i, image in enumerate(images):
            x = _sample(image, parameters, i)
            out[i] = (x * 255).round().clamp(0, 255) if out.dtype == torch.uint8 else x


# Which uniform number decides what. Fixed, so that a recipe without some operation draws the others' numbers alike.
_CROP = slice(0, 22)
_HORIZONTAL, _VERTICAL, _TURNS, _AFFINE, _ANGLE, _JITTER, _GREY = range(22, 29)
_ORDER, _FACTORS = slice(29, 33), slice(33, 37)
_BLUR, _SIGMA, _SOLARIZE, _INVERT, _POSTERIZE, _ERASE = range(37, 43)
_ERASED = slice(43, 65)
_TRANSLATE, _ZOOM, _SHEAR = slice(65, 67), 67, 68
_DRAWS = 69


def factors(recipe: Recipe) -> tuple[Array, Array, Array]:
    """[4] each, of brightness, contrast, saturation and hue: whether used; the least factor; least to largest."""
    strength = np.array([recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue])
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    least = np.maximum(neutral - strength, [0, 0, 0, -0.5])
    return strength > 0, least, neutral + strength - least


def draw(recipe: Recipe, sizes: Array, index: Tensor, seed: int, epoch: int, view: int) -> dict[str, Tensor]:
    """The tensors of Parameters.

    Args:
        sizes: [N, 2] int64: height and width of each image.
        index: [N] int64, on the CPU; with seed, epoch and view what the numbers depend on.
    """
    u = sampling.uniform(_DRAWS, index.numpy(), seed, epoch, view)
    height, width = recipe.size
    moved = u[:, _AFFINE] < recipe.affine
    most = np.array([recipe.translate[0] * width, recipe.translate[1] * height])
    shear = sampling.between(u[:, _SHEAR], -recipe.shear, recipe.shear)
    used, least, span = factors(recipe)
    erased = sampling.erased(u[:, _ERASED], np.array([recipe.size]), recipe.erase_scale, recipe.erase_ratio)
    drawn = {
        "box": sampling.resized_crop(u[:, _CROP], sizes, recipe.scale, recipe.ratio),
        "horizontal_flip": u[:, _HORIZONTAL] < recipe.horizontal_flip,
        "vertical_flip": u[:, _VERTICAL] < recipe.vertical_flip,
        "turns": (u[:, _TURNS] * 4).astype(np.int64) * int(recipe.turns),
        "angle": np.where(moved, sampling.between(u[:, _ANGLE], -recipe.degrees, recipe.degrees), 0),
        "translate": np.where(moved[:, None], (most * (2 * u[:, _TRANSLATE] - 1)).round(), 0),
        "zoom": np.where(moved, sampling.between(u[:, _ZOOM], *recipe.zoom), 1),
        "shear": np.where(moved[:, None], np.stack([shear, np.zeros_like(shear)], 1), 0),
        "order": u[:, _ORDER].argsort(1),
        "jitter": (u[:, _JITTER] < recipe.jitter)[:, None] & used,
        "factors": least + span * u[:, _FACTORS],
        "grey": u[:, _GREY] < recipe.grey,
        "sigma": np.where(u[:, _BLUR] < recipe.blur, sampling.between(u[:, _SIGMA], *recipe.sigma), 0),
        "solarize": u[:, _SOLARIZE] < recipe.solarize,
        "threshold": np.full(len(u), float(recipe.threshold)),
        "invert": u[:, _INVERT] < recipe.invert,
        "bits": np.where(u[:, _POSTERIZE] < recipe.posterize, recipe.bits, 0),
        "erase": np.where((u[:, _ERASE] < recipe.erase)[:, None], erased, 0),
    }
    return {name: torch.from_numpy(x.astype(np.float32) if x.dtype == np.float64 else x) for name, x in drawn.items()}
