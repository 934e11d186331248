"""VICReg (Bardes et al. 2022): two views agree, every dimension keeps its variance, no two of them say the same."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pyssl_fast.losses import VICRegLoss
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import ExpandedViews


class VICReg(ExpandedViews):
    title = "VICReg"

    @dataclass(frozen=True)
    class Options(ExpandedViews.Options):
        invariance: float = option(25.0, "Weight of the squared distance of the two views.")
        variance: float = option(25.0, "Weight of the hinge that keeps every standard deviation above 1.")
        covariance: float = option(1.0, "Weight of the squared covariances.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        self.criterion = VICRegLoss(options.invariance, options.variance, options.covariance)

    def loss(self, *embeddings: Tensor) -> Tensor:
        loss: Tensor = self.criterion(*embeddings)
        return loss
