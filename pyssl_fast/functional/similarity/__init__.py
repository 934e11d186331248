"""Similarity family: losses that reduce over S = Q Kᵀ without holding it."""

from pyssl_fast.functional.similarity.clip import clip_loss
from pyssl_fast.functional.similarity.dcl import dcl, dclw
from pyssl_fast.functional.similarity.embedding import embedding_info_nce
from pyssl_fast.functional.similarity.hard_negatives import hard_negative_nt_xent
from pyssl_fast.functional.similarity.hypersphere import alignment, koleo, negative_cosine_similarity, uniformity
from pyssl_fast.functional.similarity.info_nce import info_nce
from pyssl_fast.functional.similarity.neighbours import mean_shift, nearest_neighbours, nnclr
from pyssl_fast.functional.similarity.nt_xent import nt_xent
from pyssl_fast.functional.similarity.siglip import siglip
from pyssl_fast.functional.similarity.softmax import Metrics
from pyssl_fast.functional.similarity.spectral import spectral_contrastive
from pyssl_fast.functional.similarity.sup_con import sup_con
from pyssl_fast.functional.similarity.triplet import triplet_margin, triplet_margin_in_batch

info_nce_loss = info_nce  # as PyTorch names losses

__all__ = [
    "Metrics",
    "alignment",
    "clip_loss",
    "dcl",
    "dclw",
    "embedding_info_nce",
    "hard_negative_nt_xent",
    "info_nce",
    "info_nce_loss",
    "koleo",
    "mean_shift",
    "nearest_neighbours",
    "negative_cosine_similarity",
    "nnclr",
    "nt_xent",
    "siglip",
    "spectral_contrastive",
    "sup_con",
    "triplet_margin",
    "triplet_margin_in_batch",
    "uniformity",
]
