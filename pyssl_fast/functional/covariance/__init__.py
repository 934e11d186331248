"""Losses on the covariance of two views' columns, by system."""

from pyssl_fast.functional.covariance.barlow_twins import BarlowTwinsTerms, barlow_twins
from pyssl_fast.functional.covariance.vicreg import VICRegTerms, vicreg

__all__ = [
    "BarlowTwinsTerms",
    "VICRegTerms",
    "barlow_twins",
    "vicreg",
]
