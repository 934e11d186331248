"""The spectral contrastive loss (HaoChen et al. 2021) on SimCLR's views: no softmax, squares of similarities."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pyssl_fast.losses import SpectralContrastiveLoss
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import TwoViews


class Spectral(TwoViews):
    title = "spectral contrastive learning"

    @dataclass(frozen=True)
    class Options(TwoViews.Options):
        mu: float = option(1.0, "Embeddings are cut to a length of √μ.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        self.criterion = SpectralContrastiveLoss(mu=options.mu)

    def loss(self, *embeddings: Tensor) -> Tensor:
        loss: Tensor = self.criterion(*embeddings)
        return loss
