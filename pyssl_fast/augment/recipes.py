"""Recipes with the papers' numbers: how parameters are drawn, for one view and for several.

What torch code of a paper does is taken where there is one. Two differences to all of them: the blur is a true Gaussian
(Pillow's is three boxes), reflected at the edges; the jitter is torchvision's (TensorFlow code of SimCLR and BYOL adds
the brightness or takes each channel's own mean for the contrast).
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.augment import sampling
from pyssl_fast.augment.apply import apply
from pyssl_fast.augment.graphs import outside_graphs
from pyssl_fast.augment.parameters import (
    INTERPOLATIONS,
    Images,
    Parameters,
    as_normalisation,
    as_pair,
    as_size,
    as_sizes,
    check_flag,
    image_sizes,
)
from pyssl_fast.backend import kernels
from pyssl_fast.functional.checks import check_choice, check_count, check_number

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SWAV_STD = (0.228, 0.224, 0.225)  # its code's own; the published checkpoints were trained with it


@dataclass(frozen=True)
class Recipe:
    """How the parameters of one view are drawn. A probability is per image.

    Colour jitter and affine map are switched on by their strengths, all else by its probability.

    Args:
        size: height and width of the result; a number: of squares.
        scale: least and largest part of the image's area that the crop covers; ratio: of its width : height.
        interpolation, antialias: as in Parameters.
        horizontal_flip, vertical_flip: probabilities.
        turns: quarter turns, 0 to 3 alike.
        affine: probability of an affine map, where one of its numbers makes a difference: an angle of −degrees to
            degrees; moved by up to translate of the width and of the height, in whole pixels; grown by a factor of
            zoom, least and largest; sheared along x by −shear to shear degrees. As torchvision's RandomAffine with
            `fill=None`.
        jitter: probability of the colour jitter, where one of its strengths is not 0.
        brightness, contrast, saturation: factors of max(0, 1 − v) to 1 + v. hue: −v to v of a full turn. 0: left out.
        grey: probability; grey_first: before the jitter.
        blur: probability; sigma: least and largest. blur_kernel: taps; 0: 2·⌊⌊size / 10⌋ / 2⌋ + 1, SimCLR's rule. Fewer
            where the result is too small to be reflected.
        solarize, threshold; invert; posterize, bits; erase, erase_scale, erase_ratio, erase_value: probabilities, and
            how, as in Parameters.
        mean, std: empty: not normalised.
        name: for its printed form.
    """

    size: tuple[int, int] = (224, 224)
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    antialias: bool = True
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    turns: bool = False
    affine: float = 1.0
    degrees: float = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    zoom: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    jitter: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    grey_first: bool = False
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int = 0
    solarize: float = 0.0
    threshold: float = 0.5
    invert: float = 0.0
    posterize: float = 0.0
    bits: int = 4
    erase: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    erase_value: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    name: str = ""

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("size", as_size(self.size))
        put("interpolation", getattr(self.interpolation, "value", self.interpolation))  # torchvision's enumeration
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        for name in ("antialias", "turns", "grey_first"):
            check_flag(name, getattr(self, name))
        for name in (
            *("horizontal_flip", "vertical_flip", "affine", "jitter", "grey", "blur", "solarize", "threshold"),
            *("invert", "posterize", "erase"),
        ):
            check_number(name, getattr(self, name), 0, 1)
            put(name, float(getattr(self, name)))
        for name, most in (
            *(("brightness", 1e6), ("contrast", 1e6), ("saturation", 1e6), ("hue", 0.5)),
            *(("degrees", 1e6), ("shear", 89.0)),
        ):
            check_number(name, getattr(self, name), 0, most)
            put(name, float(getattr(self, name)))
        for name, low, high in (
            *(("scale", 1e-12, 1.0), ("ratio", 1e-6, 1e6), ("sigma", 1e-3, 1e3), ("zoom", 1e-3, 1e3)),
            *(("erase_scale", 1e-12, 1.0), ("erase_ratio", 1e-6, 1e6), ("translate", 0.0, 1.0)),
        ):
            pair = as_pair(name, getattr(self, name))
            for number in pair:
                check_number(name, number, low, high)
            if name != "translate" and pair[0] > pair[1]:
                raise ValueError(f"{name} must be the least and the largest; got {pair}")
            put(name, tuple(map(float, pair)))
        check_count("blur_kernel", self.blur_kernel, 0)
        if self.blur_kernel and self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be odd, or 0; got {self.blur_kernel}")
        check_count("bits", self.bits)
        if self.bits > 8:
            raise ValueError(f"bits must be 1 to 8; got {self.bits}")
        check_number("erase_value", self.erase_value, -1e30)
        for name in ("blur_kernel", "bits"):
            put(name, int(getattr(self, name)))
        put("erase_value", float(self.erase_value))
        mean, std = as_normalisation(self.mean, self.std)
        put("mean", mean)
        put("std", std)
        if self.turns and self.size[0] != self.size[1]:
            raise ValueError(f"turns need a square size; got {self.size[0]} × {self.size[1]}")

    def __repr__(self) -> str:
        def percent(p: float) -> str:
            return "" if p == 1 else f" {100 * p:g} %"

        low, high = self.scale
        parts = [
            f"crop {f'{100 * low:g} to ' if low < high else ''}{100 * high:g} % → {self.size[0]} × {self.size[1]}"
            f" {self.interpolation}"
            f"{'' if self.antialias else ' without antialias'}"
        ]
        colours = f"{self.brightness:g}/{self.contrast:g}/{self.saturation:g}/{self.hue:g}"
        sigmas = f"σ {self.sigma[0]:g} to {self.sigma[1]:g}, {self.taps()} taps"
        for on, text in (
            (self.horizontal_flip, f"flip{percent(self.horizontal_flip)}"),
            (self.vertical_flip, f"vertical flip{percent(self.vertical_flip)}"),
            (self.turns, "quarter turns"),
            (self.moves, f"{self._affine()}{percent(self.affine)}"),
            (self.grey_first and self.grey, f"grey{percent(self.grey)}"),
            (self.jitters, f"jitter {colours}{percent(self.jitter)}"),
            (not self.grey_first and self.grey, f"grey{percent(self.grey)}"),
            (self.blur, f"blur {sigmas}{percent(self.blur)}"),
            (self.solarize, f"solarize from {self.threshold:g}{percent(self.solarize)}"),
            (self.invert, f"invert{percent(self.invert)}"),
            (self.posterize, f"posterize {self.bits} bits{percent(self.posterize)}"),
            (self.mean, "normalise"),
            (self.erase, f"erase{percent(self.erase)}"),
        ):
            if on:
                parts.append(text)
        return f"{self.name or 'Recipe'}: {', '.join(parts)}"

    def _affine(self) -> str:
        low, high = self.zoom
        parts = (
            (self.degrees, f"turn ±{self.degrees:g}°"),
            (any(self.translate), f"shift ±{100 * self.translate[0]:g} and {100 * self.translate[1]:g} %"),
            (self.zoom != (1, 1), f"zoom {low:g} to {high:g}"),
            (self.shear, f"shear ±{self.shear:g}°"),
        )
        return ", ".join(text for on, text in parts if on)

    @property
    def moves(self) -> bool:
        """Whether some image gets an affine map."""
        return self.affine > 0 and self._affine() != ""

    @property
    def jitters(self) -> bool:
        """Whether some image gets a colour jitter."""
        return self.jitter > 0 and (self.brightness, self.contrast, self.saturation, self.hue) != (0, 0, 0, 0)

    def taps(self) -> int:
        """Of the blur, as `blur_kernel` says."""
        taps = self.blur_kernel or 2 * (min(self.size) // 10 // 2) + 1
        return min(taps, 2 * min(self.size) - 1)

    def replace(self, **changes: Any) -> Recipe:
        """The same with other fields, as mean and std of one's own data."""
        return dataclasses.replace(self, **changes)

    @outside_graphs
    def sample(
        self,
        sizes: Sequence[tuple[int, int]] | Tensor | torch.Size,
        generator: torch.Generator | None = None,
        *,
        seed: int | None = None,
        epoch: int = 0,
        index: Tensor | None = None,
        view: int = 0,
    ) -> Parameters:
        """Parameters of a batch, on the CPU: of one sample the same in every batch, worker and rank.

        Args:
            sizes: height and width of each image, or the shape [B, C, H, W] or [B, H, W, C] of a batch.
            generator: draws the seed where none is given; None: torch's own.
            seed, epoch, view: whole numbers of 0 or more.
            index: [B] int64: each sample's number in the data set; None: 0 to B − 1.

        Raises:
            TypeError, ValueError: a wrong size, number or index.
        """
        size = as_sizes(sizes)
        n = len(size)
        index = torch.arange(n, device="cpu") if index is None else index
        if not isinstance(index, Tensor) or index.shape != (n,):
            raise ValueError(
                f"index must be a Tensor [{n}], one number per image; got {getattr(index, 'shape', index)}"
            )
        seed = sampling.seed_of(generator, seed)
        for name, number in (("seed", seed), ("epoch", epoch), ("view", view)):
            sampling.check_counter(name, number)
        if index.dtype != torch.int64:
            raise TypeError(f"index must be a Tensor [{n}] of int64; got {index.dtype}")
        index = index.cpu()
        if bool((index < 0).any()):
            raise ValueError(f"index must be 0 or more; got {int(index.min())}")
        return Parameters(
            **kernels(backend.on_cpu("augment"), "augment").draw(self, size, index, seed, epoch, view),
            size=self.size,
            interpolation=self.interpolation,
            antialias=self.antialias,
            blur_kernel=self.taps(),
            grey_first=self.grey_first,
            mean=self.mean,
            std=self.std,
            erase_value=self.erase_value,
        )

    @outside_graphs
    def __call__(
        self,
        images: Images,
        generator: torch.Generator | None = None,
        *,
        seed: int | None = None,
        epoch: int = 0,
        index: Tensor | None = None,
        view: int = 0,
        dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
    ) -> Tensor:
        """[B, C, height, width]: `sample`, then `apply`."""
        sizes, _ = image_sizes(images)
        parameters = self.sample(sizes, generator, seed=seed, epoch=epoch, index=index, view=view)
        return apply(images, parameters, dtype=dtype, out=out)


@dataclass(frozen=True)
class Views:
    """Several recipes for one batch: view i of every image is drawn with the counter view = i."""

    recipes: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        recipes = self.recipes if isinstance(self.recipes, (tuple, list)) else (self.recipes,)
        for recipe in recipes:
            if not isinstance(recipe, Recipe):
                raise TypeError(f"recipes must each be a Recipe, of one view; got {recipe!r}")
        if len(recipes) == 0:
            raise ValueError("recipes must not be empty; got none")
        object.__setattr__(self, "recipes", tuple(recipes))

    def __iter__(self) -> Iterator[Recipe]:
        return iter(self.recipes)

    def __getitem__(self, index: int) -> Recipe:
        return self.recipes[operator.index(index)]

    def __repr__(self) -> str:
        lines = []
        for recipe in dict.fromkeys(self.recipes):
            which = [str(i) for i, other in enumerate(self.recipes) if other == recipe]
            lines.append(f"view{'s' if len(which) > 1 else ''} {', '.join(which)}: {recipe!r}")
        return "\n".join(lines)

    def __len__(self) -> int:
        return len(self.recipes)

    def replace(self, **changes: Any) -> Views:
        """The same with other fields in each recipe, as mean and std; a size or a blur would make all views alike."""
        return Views(tuple(recipe.replace(**changes) for recipe in self.recipes))

    def sample(
        self,
        sizes: Sequence[tuple[int, int]] | Tensor | torch.Size,
        generator: torch.Generator | None = None,
        *,
        seed: int | None = None,
        epoch: int = 0,
        index: Tensor | None = None,
    ) -> list[Parameters]:
        """Each view's parameters; arguments as of Recipe.sample."""
        seed = sampling.seed_of(generator, seed)
        return [r.sample(sizes, seed=seed, epoch=epoch, index=index, view=i) for i, r in enumerate(self.recipes)]

    @outside_graphs
    def __call__(
        self,
        images: Images,
        generator: torch.Generator | None = None,
        *,
        seed: int | None = None,
        epoch: int = 0,
        index: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Each view, [B, C, height, width]. out: one per view, to write into."""
        if out is not None and len(out) != len(self):
            raise ValueError(f"out must hold {len(self)} Tensors, one per view; got {len(out)}")
        sizes, _ = image_sizes(images)
        sampled = self.sample(sizes, generator, seed=seed, epoch=epoch, index=index)
        places = [None] * len(self) if out is None else out
        return [apply(images, p, dtype=dtype, out=place) for p, place in zip(sampled, places, strict=True)]


def two_views(first: Recipe, second: Recipe | None = None) -> Views:
    """Two views of every image, both by one recipe or each by its own."""
    return Views((first, first if second is None else second))


def multi_crop(first: Recipe, second: Recipe, local: Recipe, count: int) -> Views:
    """Two global views and `count` local ones (Caron et al. 2020, section 3.2)."""
    check_count("count", count, 0)
    return Views((first, second, *[local] * count))


def _photograph(strengths: tuple[float, float, float, float], **changes: Any) -> Recipe:
    brightness, contrast, saturation, hue = strengths
    fields: dict[str, Any] = {
        "horizontal_flip": 0.5,
        "jitter": 0.8,
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
        "grey": 0.2,
        "blur_kernel": _PILLOW_TAPS,
    }
    return Recipe(**{**fields, **changes})


_PILLOW_TAPS = 13  # 3·σ to each side for the largest σ of 2: the papers' torch code blurs with Pillow, of any width
_BYOL = (0.4, 0.4, 0.2, 0.1)
_SIMCLR = (0.8, 0.8, 0.8, 0.2)


def simclr(size: int = 224, strength: float = 1.0, blur: float = 0.5) -> Views:
    """SimCLR (Chen et al. 2020, appendix A). For CIFAR-10: size 32, strength 0.5, blur 0."""
    b, c, s, h = (strength * v for v in _SIMCLR)
    return two_views(
        _photograph(
            (b, c, s, h),
            size=size,
            interpolation="bicubic",
            antialias=False,
            blur=blur,
            blur_kernel=0,
            name="SimCLR",
        )
    )


def byol(size: int = 224) -> Views:
    """BYOL (Grill et al. 2020, appendix B): one view always blurred, the other seldom, and solarized at times."""
    first = _photograph(
        _BYOL, size=size, interpolation="bicubic", antialias=False, blur=1.0, blur_kernel=0, name="BYOL first"
    )
    return two_views(first, first.replace(blur=0.1, solarize=0.2, name="BYOL second"))


def moco_v1(size: int = 224) -> Views:
    """MoCo (He et al. 2020, section 3.3, and its code): grey first, then a jitter of every image; no blur."""
    return two_views(
        _photograph((0.4, 0.4, 0.4, 0.4), size=size, scale=(0.2, 1.0), jitter=1.0, grey_first=True, name="MoCo v1")
    )


def moco_v2(size: int = 224) -> Views:
    """MoCo v2 (Chen et al. 2020, section 3, and its code)."""
    return two_views(_photograph((0.4, 0.4, 0.4, 0.1), size=size, scale=(0.2, 1.0), blur=0.5, name="MoCo v2"))


def vicreg(size: int = 224) -> Views:
    """VICReg (Bardes et al. 2022, appendix C.1) and Barlow Twins (Zbontar et al. 2021, section 2.2): BYOL's."""
    first = _photograph(_BYOL, size=size, interpolation="bicubic", blur=1.0, name="VICReg first")
    return two_views(first, first.replace(blur=0.1, solarize=0.2, name="VICReg second"))


barlow_twins = vicreg


def dino(size: int = 224, local_size: int = 96, count: int = 8) -> Views:
    """DINO (Caron et al. 2021, section 3.2, and its code's defaults): 2 global and 8 local views."""
    first = _photograph(_BYOL, size=size, scale=(0.4, 1.0), interpolation="bicubic", blur=1.0, name="DINO global 1")
    second = first.replace(blur=0.1, solarize=0.2, name="DINO global 2")
    local = first.replace(size=(local_size, local_size), scale=(0.05, 0.4), blur=0.5, name="DINO local")
    return multi_crop(first, second, local, count)


def dinov2(size: int = 224, local_size: int = 96, count: int = 8, inverted_blur: bool = False) -> Views:
    """DINOv2 (Oquab et al. 2024): DINO's with other crops, and a blur of 9 taps.

    Args:
        inverted_blur: as its code runs: it hands 1 − p to RandomApply, and blurs 0, 90 and 50 % of the views, not 100,
            10 and 50 % (facebookresearch/dinov2#411).
    """
    first, second, local = dino(size, local_size, 1).recipes
    blurs = (0.0, 0.9, 0.5) if inverted_blur else (1.0, 0.1, 0.5)
    first = first.replace(scale=(0.32, 1.0), blur=blurs[0], blur_kernel=9, name="DINOv2 global 1")
    second = second.replace(scale=(0.32, 1.0), blur=blurs[1], blur_kernel=9, name="DINOv2 global 2")
    local = local.replace(scale=(0.05, 0.32), blur=blurs[2], blur_kernel=9, name="DINOv2 local")
    return multi_crop(first, second, local, count)


def swav(size: int = 224, local_size: int = 96, count: int = 6) -> Views:
    """SwAV (Caron et al. 2020, section 3.2, and its code): 2 global and 6 local views."""
    first = _photograph(_SIMCLR, size=size, scale=(0.14, 1.0), blur=0.5, std=SWAV_STD, name="SwAV global")
    local = first.replace(size=(local_size, local_size), scale=(0.05, 0.14), name="SwAV local")
    return multi_crop(first, first, local, count)


def mae(size: int = 224) -> Recipe:
    """MAE's pre-training (He et al. 2022, appendix A.1, and its code): crop and flip alone, one view."""
    return Recipe(size=(size, size), scale=(0.2, 1.0), interpolation="bicubic", horizontal_flip=0.5, name="MAE")


def rotation(size: int = 224) -> Recipe:
    """Rotation prediction (Gidaris et al. 2018): a crop, a flip, and a quarter turn, which Parameters.turns tells."""
    return Recipe(size=(size, size), horizontal_flip=0.5, turns=True, name="rotation")


RECIPES: dict[str, Callable[..., Recipe | Views]] = {
    "simclr": simclr,
    "byol": byol,
    "moco_v1": moco_v1,
    "moco_v2": moco_v2,
    "vicreg": vicreg,
    "barlow_twins": barlow_twins,
    "dino": dino,
    "dinov2": dinov2,
    "swav": swav,
    "mae": mae,
    "rotation": rotation,
}
