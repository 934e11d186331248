"""SimCLR (Chen et al. 2020): two views of an image attract each other, the views of all other images repel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pyssl_fast.losses import NTXentLoss
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import TwoViews


class SimCLR(TwoViews):
    title = "SimCLR"

    @dataclass(frozen=True)
    class Options(TwoViews.Options):
        temperature: float = option(0.5, "Temperature of the softmax over similarities.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        self.criterion = NTXentLoss(temperature=options.temperature)

    def loss(self, *embeddings: Tensor) -> Tensor:
        loss: Tensor = self.criterion(*embeddings)
        return loss
