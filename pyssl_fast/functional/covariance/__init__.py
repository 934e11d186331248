"""Losses on the covariance of two views' columns, by system."""

from pyssl_fast.functional.covariance.barlow_twins import BarlowTwinsTerms, barlow_twins
from pyssl_fast.functional.covariance.sigreg import LeJEPATerms, lejepa, sigreg
from pyssl_fast.functional.covariance.vicreg import VICRegTerms, vicreg

__all__ = [
    "BarlowTwinsTerms",
    "LeJEPATerms",
    "VICRegTerms",
    "barlow_twins",
    "lejepa",
    "sigreg",
    "vicreg",
]
