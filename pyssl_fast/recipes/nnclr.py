"""NNCLR (Dwibedi et al. 2021): a view attracts the earlier embedding that lies nearest to the other view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyssl_fast.functional import nearest_neighbours
from pyssl_fast.losses import NNCLRLoss
from pyssl_fast.modules import PredictionHead
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import QueuedViews


class NNCLR(QueuedViews):
    title = "NNCLR"

    @dataclass(frozen=True)
    class Options(QueuedViews.Options):
        temperature: float = option(0.1, "Temperature of the softmax over similarities.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        self.predictor = PredictionHead(options.embedding_dim)
        self.criterion = NNCLRLoss(temperature=options.temperature)

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Predictions of both views, then their embeddings, which look for neighbours and get no gradient."""
        embeddings = self(torch.cat(list(views)))
        return *self.predictor(embeddings).chunk(2), *embeddings.detach().chunk(2)

    def loss(self, *embeddings: Tensor) -> Tensor:
        *predictions, first, second = embeddings
        pairs = zip((second, first), predictions, strict=True)
        losses = [self.criterion(self._neighbours(view), prediction) for view, prediction in pairs]
        self.enqueue(first)
        return torch.stack(losses).mean()

    def _neighbours(self, embeddings: Tensor) -> Tensor:
        assert self.queue is not None
        _, index = nearest_neighbours(embeddings, self.queue.keys, normalize=False)  # the keys have length 1
        return self.queue.keys[index[:, 0]].to(embeddings.dtype)
