"""LeJEPA (Balestriero & LeCun 2025): views agree, and embeddings are distributed like an isotropic Gaussian."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pyssl_fast.losses import LeJEPALoss
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import ExpandedViews


class LeJEPA(ExpandedViews):
    title = "LeJEPA"

    @dataclass(frozen=True)
    class Options(ExpandedViews.Options):
        embedding_dim: int = option(64, "Length of the embeddings.")
        gaussianity: float = option(0.1, "Weight of the distance from the Gaussian, 0 to 1; the views' has the rest.")
        directions: int = option(256, "Random directions per step along which the distribution is looked at.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        self.criterion = LeJEPALoss(options.gaussianity, sigreg_num_vectors=options.directions)

    def loss(self, *embeddings: Tensor) -> Tensor:
        # Of two views alike, it is all the same which one is called the global one.
        first, second = embeddings
        loss: Tensor = self.criterion(local_proj=second[None], global_proj=first[None])
        return loss
