"""Triplet loss (Schroff et al. 2015; Hermans et al. 2017): same classes nearer than others. Learns from labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyssl_fast.losses import BatchTripletMarginLoss
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import TwoViews


class Triplet(TwoViews):
    title = "triplet loss"
    supervised = True

    @dataclass(frozen=True)
    class Options(TwoViews.Options):
        margin: float = option(0.2, "By which other classes are to be farther than the own.")
        mining: str = option("semi-hard", "Of all triplets of a batch: all, semi-hard or hard.")
        distance: str = option("euclidean", "Of the normalised embeddings: euclidean or cosine.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        self.criterion = BatchTripletMarginLoss(options.margin, mining=options.mining, distance=options.distance)

    def loss(self, *embeddings: Tensor) -> Tensor:
        *views, labels = embeddings
        loss: Tensor = self.criterion(torch.cat(views), labels.repeat(len(views)))
        return loss
