"""Random views of images: explicit parameters per sample, how they are drawn, and how they are applied."""

from pyssl_fast.augment.apply import apply
from pyssl_fast.augment.dataset import AugmentedDataset
from pyssl_fast.augment.parameters import Parameters, plain
from pyssl_fast.augment.recipes import (
    RECIPES,
    Recipe,
    Views,
    barlow_twins,
    byol,
    dino,
    dinov2,
    mae,
    moco_v1,
    moco_v2,
    multi_crop,
    rotation,
    simclr,
    swav,
    two_views,
    vicreg,
)
from pyssl_fast.augment.transform import Transform

__all__ = [
    "RECIPES",
    "AugmentedDataset",
    "Parameters",
    "Recipe",
    "Transform",
    "Views",
    "apply",
    "barlow_twins",
    "byol",
    "dino",
    "dinov2",
    "mae",
    "moco_v1",
    "moco_v2",
    "multi_crop",
    "plain",
    "rotation",
    "simclr",
    "swav",
    "two_views",
    "vicreg",
]
