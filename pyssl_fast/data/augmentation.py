"""The random variations that make two views of one image, by what the image shows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from pyssl_fast.data.images import Kind


@dataclass(frozen=True)
class Augmentation:
    """A random transform of a picture, of any size, into one of a fixed size; and how to say it in a line."""

    transform: Callable[[Image.Image], Image.Image]
    description: str


def two_view_augmentation(kind: Kind, size: int) -> Augmentation:
    """The augmentation of methods that compare two views of an image.

    Digits are moved, turned and sheared, never mirrored (a mirrored digit is another sign, or none). Clothes are
    cropped, mirrored, and change their brightness and contrast. Photographs get SimCLR's recipe (Chen et al.
    2020, appendix A), with blur above 32 pixels, as there.

    Args:
        kind: what the images show.
        size: height and width of the result, in pixels.
    """
    bilinear = InterpolationMode.BILINEAR
    if kind == "digits":
        return Augmentation(
            v2.Compose([
                v2.Resize((size, size)),
                v2.RandomAffine(25, translate=(0.15, 0.15), scale=(0.6, 1.3), shear=20, interpolation=bilinear),
            ]),
            "turn ±25°, shift ±15 %, scale 0.6 to 1.3, shear ±20°",
        )  # fmt: skip
    if kind == "clothes":
        return Augmentation(
            v2.Compose([
                v2.RandomResizedCrop(size, scale=(0.3, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(brightness=0.4, contrast=0.4),
            ]),
            "crop 30 to 100 % of the area, mirror, brightness and contrast ±40 %",
        )  # fmt: skip
    jitter = 0.5 if size <= 32 else 1.0  # SimCLR's strengths for CIFAR-10 and for ImageNet
    return _photograph(size, f"colour jitter {jitter:g}", (0.8 * jitter, 0.8 * jitter, 0.8 * jitter, 0.2 * jitter), 0.5)


def byol_augmentations(kind: Kind, size: int) -> tuple[Augmentation, Augmentation]:
    """BYOL's two (Grill et al. 2020, appendix B): of a photograph, one view is blurred, the other solarised at times.

    Blur above 32 pixels only, as in `two_view_augmentation`, which digits and clothes get twice.

    Args:
        kind: what the images show.
        size: height and width of the result, in pixels.
    """
    if kind != "photos":
        return (two_view_augmentation(kind, size),) * 2
    jitter = ("colour jitter of BYOL", (0.4, 0.4, 0.2, 0.1))
    return _photograph(size, *jitter, blur=1.0), _photograph(size, *jitter, blur=0.1, solarize=0.2)


def _photograph(
    size: int, jitter: str, strengths: tuple[float, float, float, float], blur: float, solarize: float = 0.0
) -> Augmentation:
    """strengths: of brightness, contrast, saturation and hue; blur, solarize: probabilities."""
    least = 8 if size > 64 else 20
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(size, scale=(least / 100, 1.0)),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(*strengths)], p=0.8),
        v2.RandomGrayscale(p=0.2),
    ]
    description = f"crop from {least} % of the area, mirror, {jitter}, grey"
    if size > 32:
        kernel = 2 * (size // 20) + 1  # a tenth of the side, odd
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=blur))
        description += f", blur {blur:.0%}"
    if solarize:
        steps.append(v2.RandomSolarize(128, p=solarize))
        description += f", solarise {solarize:.0%}"
    return Augmentation(v2.Compose(steps), description)


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, torch's CPU random numbers depend on `key` alone; afterwards they go on as if nothing had happened."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
    try:
        yield
    finally:
        torch.set_rng_state(before)
