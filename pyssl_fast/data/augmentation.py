"""The random variations that make two views of one image, by what the image shows, and two ways to carry them out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyssl_fast import backend, use_backend
from pyssl_fast.augment import Recipe, Transform, Views, byol, simclr
from pyssl_fast.data.images import Kind, to_tensor


def two_view_augmentation(kind: Kind, size: int) -> Recipe:
    """The augmentation of methods that compare two views of an image.

    Digits are moved, turned and sheared, never mirrored (a mirrored digit is another sign, or none). Clothes are
    cropped, mirrored, and change their brightness and contrast. Photographs get `augment.simclr`, changed
    for small images: up to 64 pixels a crop covers a fifth of the image at least (the paper's 8 % of 32 × 32 are
    9 × 9); up to 32 there is no blur and half the jitter, as in the paper for CIFAR-10. They are resized bilinear and
    antialiased, as `torchvision_transform` does it.

    Args:
        kind: what the images show.
        size: height and width of the result, in pixels.
    """
    plain = Recipe(size=(size, size), mean=(), std=(), name=kind)
    if kind == "digits":
        return replace(
            plain, scale=(1, 1), ratio=(1, 1), affine=1.0, degrees=25, translate=(0.15, 0.15), zoom=(0.6, 1.3), shear=20
        )
    if kind == "clothes":
        return replace(plain, scale=(0.3, 1.0), horizontal_flip=0.5, jitter=1.0, brightness=0.4, contrast=0.4)
    return _photograph(simclr(size, strength=0.5 if size <= 32 else 1.0).recipes[0])


def byol_augmentations(kind: Kind, size: int) -> tuple[Recipe, Recipe]:
    """`augment.byol`'s two for photographs: one view is blurred, the other solarised at times.

    Crops, blur and resizing are changed as in `two_view_augmentation`, which digits and clothes get twice.

    Args:
        kind: what the images show.
        size: height and width of the result, in pixels.
    """
    if kind != "photos":
        return (two_view_augmentation(kind, size),) * 2
    first, second = byol(size).recipes
    return _photograph(first), _photograph(second)


def _photograph(paper: Recipe) -> Recipe:
    """A paper's recipe as `two_view_augmentation` changes it."""
    size = paper.size[0]
    return replace(
        paper,
        scale=(0.08 if size > 64 else 0.2, 1.0),
        interpolation="bilinear",
        antialias=True,
        blur=paper.blur if size > 32 else 0.0,
        mean=(),
        std=(),
        name="photos",
    )


def fused(
    recipes: Sequence[Recipe], pictures: Sequence[Image.Image], seed: int, epoch: int, index: list[int]
) -> list[Tensor]:
    """All views of a batch of pictures, uint8 [B, C, height, width] per recipe; index: the pictures' numbers."""
    with use_backend("reference" if backend.selected() == "reference" else "auto"):  # the losses' may be a GPU's
        return Transform(Views(tuple(recipes)), dtype=torch.uint8, seed=seed)(list(pictures), index=index, epoch=epoch)


def by_torchvision(
    recipes: Sequence[Recipe], pictures: Sequence[Image.Image], seed: int, epoch: int, index: list[int]
) -> list[Tensor]:
    """The same by torchvision, picture by picture, with random numbers of its own."""
    transforms = [torchvision_transform(recipe) for recipe in recipes]
    views: list[list[Tensor]] = [[] for _ in recipes]
    for picture, number in zip(pictures, index, strict=True):
        with seeded(seed, epoch, number):
            for view, transform in zip(views, transforms, strict=True):
                view.append(to_tensor(transform(picture)))
    return [torch.stack(view) for view in views]


AUGMENTATIONS: dict[str, Callable[..., list[Tensor]]] = {"pyssl_fast": fused, "torchvision": by_torchvision}


def torchvision_transform(recipe: Recipe) -> Callable[[Image.Image], Image.Image]:
    """What a recipe of this module says, as a chain of torchvision's transforms of Pillow images."""
    from torchvision.transforms import InterpolationMode, v2

    bilinear, r = InterpolationMode.BILINEAR, recipe
    whole = r.scale == (1, 1) and r.ratio == (1, 1)
    crop = v2.Resize(r.size) if whole else v2.RandomResizedCrop(r.size, r.scale, r.ratio, bilinear)
    steps = (
        (1.0, crop),
        (r.horizontal_flip, v2.RandomHorizontalFlip(r.horizontal_flip)),
        (r.affine * r.moves, v2.RandomAffine(r.degrees, r.translate, r.zoom, r.shear, bilinear)),
        (r.jitter * r.jitters, v2.ColorJitter(r.brightness, r.contrast, r.saturation, r.hue)),
        (r.grey, v2.RandomGrayscale(r.grey)),
        (r.blur, v2.RandomApply([v2.GaussianBlur(r.taps(), r.sigma)], r.blur)),
        (r.solarize, v2.RandomSolarize(255 * r.threshold, r.solarize)),
    )
    # Which draw whether by themselves; a blur that is certain too, as in the runs of older checkpoints.
    own = (v2.RandomHorizontalFlip, v2.RandomGrayscale, v2.RandomSolarize, v2.RandomApply)

    def applied(probability: float, step: torch.nn.Module) -> torch.nn.Module:
        return step if probability == 1 or isinstance(step, own) else v2.RandomApply([step], probability)

    return v2.Compose([applied(probability, step) for probability, step in steps if probability])


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, torch's CPU random numbers depend on `key` alone; afterwards they go on as if nothing had happened."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
    try:
        yield
    finally:
        torch.set_rng_state(before)
