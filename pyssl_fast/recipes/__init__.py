"""Training recipes, one file per method, and the engine that runs them.

A new method is a file with a subclass of `Recipe` and one line in RECIPES.
"""

from __future__ import annotations

import importlib

from pyssl_fast.recipes.recipe import Recipe

RECIPES = {
    "simclr": "pyssl_fast.recipes.simclr:SimCLR",
    "moco": "pyssl_fast.recipes.moco:MoCo",
    "nnclr": "pyssl_fast.recipes.nnclr:NNCLR",
    "meanshift": "pyssl_fast.recipes.meanshift:MeanShift",
    "byol": "pyssl_fast.recipes.byol:BYOL",
    "simsiam": "pyssl_fast.recipes.simsiam:SimSiam",
    "spectral": "pyssl_fast.recipes.spectral:Spectral",
    "supcon": "pyssl_fast.recipes.supcon:SupCon",
    "triplet": "pyssl_fast.recipes.triplet:Triplet",
    "vicreg": "pyssl_fast.recipes.vicreg:VICReg",
    "barlow-twins": "pyssl_fast.recipes.barlow_twins:BarlowTwins",
    "w-mse": "pyssl_fast.recipes.w_mse:WMSE",
    "tico": "pyssl_fast.recipes.tico:TiCo",
    "lejepa": "pyssl_fast.recipes.lejepa:LeJEPA",
}


def find_recipe(method: str) -> type[Recipe]:
    """The recipe of a method. Raises ValueError, naming the known ones, for an unknown method."""
    if method not in RECIPES:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(RECIPES)}")
    module, _, name = RECIPES[method].partition(":")
    recipe: type[Recipe] = getattr(importlib.import_module(module), name)
    return recipe
