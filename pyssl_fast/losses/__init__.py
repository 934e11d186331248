"""The losses as modules: drop-in, one small file per system."""

from pyssl_fast.losses.barlow_twins import BarlowTwinsLoss
from pyssl_fast.losses.clip import ClipLoss
from pyssl_fast.losses.dcl import DCLLoss, DCLWLoss
from pyssl_fast.losses.embedding import EmbeddingInfoNCELoss
from pyssl_fast.losses.hard_negatives import HardNegativeLoss
from pyssl_fast.losses.hypersphere import HypersphereLoss
from pyssl_fast.losses.info_nce import InfoNCELoss
from pyssl_fast.losses.koleo import KoLeoLoss
from pyssl_fast.losses.le_jepa import LeJEPALoss, SIGReg
from pyssl_fast.losses.mean_shift import MeanShiftLoss
from pyssl_fast.losses.negative_cosine import NegativeCosineSimilarity
from pyssl_fast.losses.nnclr import NNCLRLoss
from pyssl_fast.losses.nt_xent import NTXentLoss
from pyssl_fast.losses.siglip import SigLipLoss
from pyssl_fast.losses.spectral import SpectralContrastiveLoss
from pyssl_fast.losses.sup_con import SupConLoss
from pyssl_fast.losses.tico import TiCoLoss
from pyssl_fast.losses.triplet import BatchTripletMarginLoss, TripletMarginLoss
from pyssl_fast.losses.vibcreg import VIbCRegLoss
from pyssl_fast.losses.vicreg import VICRegLoss
from pyssl_fast.losses.vicregl import VICRegLLoss
from pyssl_fast.losses.w_mse import WMSELoss

InfoNCE = InfoNCELoss  # info-nce-pytorch's name

__all__ = [
    "BarlowTwinsLoss",
    "BatchTripletMarginLoss",
    "ClipLoss",
    "DCLLoss",
    "DCLWLoss",
    "EmbeddingInfoNCELoss",
    "HardNegativeLoss",
    "HypersphereLoss",
    "InfoNCE",
    "InfoNCELoss",
    "KoLeoLoss",
    "LeJEPALoss",
    "MeanShiftLoss",
    "NNCLRLoss",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "SIGReg",
    "SigLipLoss",
    "SpectralContrastiveLoss",
    "SupConLoss",
    "TiCoLoss",
    "TripletMarginLoss",
    "VICRegLLoss",
    "VICRegLoss",
    "VIbCRegLoss",
    "WMSELoss",
]
