"""A recipe as the transform of a data set, of its batches, or of batches on the GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyssl_fast.augment import sampling
from pyssl_fast.augment.graphs import outside_graphs
from pyssl_fast.augment.parameters import DTYPES
from pyssl_fast.augment.recipes import Recipe, Views


class Transform(nn.Module):
    """A recipe where torchvision's transforms stand: in a data set, in `v2.Compose`, or on batches.

    In a worker of a DataLoader the kernel runs on that worker's one thread.

    Args:
        recipe: of one view, or of several.
        dtype: of the result: floating-point; or uint8, for recipes that do not normalise.
        seed: None: each call draws from torch's generator, which a DataLoader seeds in each of its workers by itself;
            `torch.manual_seed` makes it repeat. A number: the call says which sample it is, and of one sample the views
            are the same in every batch, worker and rank.

    Raises:
        TypeError, ValueError: a wrong recipe, dtype or seed.
    """

    def __init__(self, recipe: Recipe | Views, *, dtype: torch.dtype = torch.float32, seed: int | None = None) -> None:
        super().__init__()
        if not isinstance(recipe, (Recipe, Views)):
            raise TypeError(f"recipe must be a Recipe or Views, as augment.simclr() makes; got {recipe!r}")
        if dtype not in DTYPES:
            raise TypeError(f"dtype must be uint8 or floating-point; got {dtype}")
        if dtype == torch.uint8 and any(r.mean for r in (recipe if isinstance(recipe, Views) else (recipe,))):
            raise ValueError(
                "dtype must be floating-point, as the recipe normalises; or take recipe.replace(mean=(), std=())"
            )
        if seed is not None:
            sampling.check_counter("seed", seed)
        self.recipe = recipe
        self.dtype = dtype
        self.seed = seed

    def extra_repr(self) -> str:
        return f"{self.recipe!r}, {self.dtype}" + ("" if self.seed is None else f", seed {self.seed}")

    @outside_graphs
    def forward(
        self, images: Any, *others: Any, index: int | Sequence[int] | Tensor | None = None, epoch: int = 0
    ) -> Any:
        """The views of one image, or of a batch.

        Args:
            images: one image, or a batch: a Tensor [B, C, H, W], or a list of images of any sizes. An image is a Tensor
                [C, H, W], an array [H, W] or [H, W, C], uint8 or floating-point of 0 to 1 (float64 as float32), or
                Pillow's: RGB and L as they are, all others as RGB, 16 bits scaled to 8, what is transparent on white;
                as stored, whatever EXIF says of its orientation; mode F, whose scale is unknown, is refused. A recipe
                that normalises by three numbers takes three channels.
            others: labels, names, whatever: they come back as they are, after the views. A number here is no index.
            index: with a seed: the image's number in the data set; of a batch, each image's.
            epoch: with a seed: of 0 or more.

        Returns:
            Of one image [C, height, width], of a batch [B, C, height, width], on its device; of Views a list of them.
            With others a tuple: that, and they.

        Raises:
            TypeError, ValueError: wrong images; an index without a seed, or a seed without an index.
        """
        if (index is None) != (self.seed is None):
            raise ValueError(
                "index must be given where the transform has a seed, or all images would be varied alike"
                if index is None
                else "index must be left out where the transform has no seed: it would decide nothing"
            )
        batch: Tensor | list[Tensor]
        if isinstance(images, (list, tuple)):
            single, batch = False, [_tensor(x) for x in images]
        else:
            image = _tensor(images)
            single = image.dim() != 4
            batch = [image] if single else image
        if index is not None:
            index = torch.as_tensor([index] if single else index, device="cpu")
        seed = sampling.seed_of(seed=self.seed)
        made = self.recipe(batch, seed=seed, epoch=epoch, index=index, dtype=self.dtype)
        if single:
            made = made[0] if isinstance(made, Tensor) else [view[0] for view in made]
        return (made, *others) if others else made


def _tensor(image: Any) -> Tensor:
    """[C, H, W] of one image; a Tensor of any shape as it is."""
    if isinstance(image, Tensor):
        return image.as_subclass(Tensor)  # torchvision's Image would wrap every step's result
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        if image.mode not in ("RGB", "L"):
            from pyssl_fast.data.images import opaque

            image = opaque(image)
        image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image must be a Tensor, an array or a Pillow image; got {type(image).__name__}")
    if image.dtype == np.float64:  # what NumPy computes in; Tensors of it are left to the twin
        image = image.astype(np.float32)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ValueError(f"an array must have shape [H, W] or [H, W, C], of 1, 3 or 4 channels; got {image.shape}")
    # Torch takes no negative strides, and warns of memory that must not be written to.
    return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
