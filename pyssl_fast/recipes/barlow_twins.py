"""Barlow Twins (Zbontar et al. 2021): the dimensions of two views correlate each with itself, and with no other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pyssl_fast.losses import BarlowTwinsLoss
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import ExpandedViews


class BarlowTwins(ExpandedViews):
    title = "Barlow Twins"

    @dataclass(frozen=True)
    class Options(ExpandedViews.Options):
        redundancy: float = option(5e-3, "Weight of the squared correlations of different dimensions.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        self.criterion = BarlowTwinsLoss(options.redundancy)

    def loss(self, *embeddings: Tensor) -> Tensor:
        loss: Tensor = self.criterion(*embeddings)
        return loss
