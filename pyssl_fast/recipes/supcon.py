"""SupCon (Khosla et al. 2020): all views of all images of a class attract each other. Learns from labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyssl_fast.losses import SupConLoss
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import TwoViews


class SupCon(TwoViews):
    title = "SupCon"
    supervised = True

    @dataclass(frozen=True)
    class Options(TwoViews.Options):
        temperature: float = option(0.1, "Temperature of the softmax over similarities.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        self.criterion = SupConLoss(options.temperature, base_temperature=None, normalize=True)

    def loss(self, *embeddings: Tensor) -> Tensor:
        *views, labels = embeddings
        loss: Tensor = self.criterion(torch.stack(views, dim=1), labels)
        return loss
