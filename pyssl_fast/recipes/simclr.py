"""SimCLR (Chen et al. 2020): two views of an image attract each other, the views of all other images repel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyssl_fast.data import ImageData
from pyssl_fast.data.augmentation import Augmentation, two_view_augmentation
from pyssl_fast.losses import NTXentLoss
from pyssl_fast.modules import ProjectionHead
from pyssl_fast.recipes.recipe import Budget, Recipe, option


class SimCLR(Recipe):
    title = "SimCLR"
    family = "similarity"
    budgets: ClassVar[dict[str, Budget]] = {
        "mnist5k": Budget(epochs=20),
        "fashion-mnist": Budget(epochs=15),
        "": Budget(epochs=100),
    }

    @dataclass(frozen=True)
    class Options:
        temperature: float = option(0.5, "Temperature of the softmax over similarities.")
        embedding_dim: int = option(128, "Length of the embeddings that are compared.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        if options.embedding_dim < 1:
            raise ValueError(f"--embedding-dim must be at least 1, got {options.embedding_dim}")
        self.projector = ProjectionHead(features, out_dim=options.embedding_dim)
        self.criterion = NTXentLoss(temperature=options.temperature)

    @staticmethod
    def augmentations(data: ImageData) -> Sequence[Augmentation]:
        return [two_view_augmentation(data.kind, data.size)] * 2

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.projector(self.encoder(images))
        return embeddings

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self(torch.cat(list(views))).chunk(2)

    def loss(self, *embeddings: Tensor) -> Tensor:
        loss: Tensor = self.criterion(*embeddings)
        return loss
