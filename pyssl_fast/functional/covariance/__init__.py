"""Losses on the covariance of two views' columns, by system."""

from pyssl_fast.functional.covariance.barlow_twins import BarlowTwinsTerms, barlow_twins
from pyssl_fast.functional.covariance.sigreg import LeJEPATerms, lejepa, sigreg
from pyssl_fast.functional.covariance.tico import tico
from pyssl_fast.functional.covariance.vibcreg import vibcreg
from pyssl_fast.functional.covariance.vicreg import VICRegTerms, vicreg
from pyssl_fast.functional.covariance.vicregl import vicregl
from pyssl_fast.functional.covariance.w_mse import Whitened, norm_mse_loss, w_mse, whiten

__all__ = [
    "BarlowTwinsTerms",
    "LeJEPATerms",
    "VICRegTerms",
    "Whitened",
    "barlow_twins",
    "lejepa",
    "norm_mse_loss",
    "sigreg",
    "tico",
    "vibcreg",
    "vicreg",
    "vicregl",
    "w_mse",
    "whiten",
]
