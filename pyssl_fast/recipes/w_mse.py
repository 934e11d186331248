"""W-MSE (Ermolov et al. 2021): two views agree after whitening, which leaves no room for collapse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyssl_fast.losses import WMSELoss
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import TwoViews

SIZES = range(128, 63, -1)  # of what is whitened together, unless another is asked for
WIDEST = 64  # length of the embeddings, likewise


class WMSE(TwoViews):
    title = "W-MSE"
    family = "covariance"

    @dataclass(frozen=True)
    class Options(TwoViews.Options):
        embedding_dim: int = option(0, "Length of the embeddings; 0 is half of --whitening-size, at most 64.")
        whitening_size: int = option(
            0, "Embeddings whitened together, a divisor of the batch size; 0 is the largest of 64 to 128, or all."
        )
        repeats: int = option(1, "Times that a batch is divided at random and whitened.")
        eps: float = option(0.0, "Share of the identity in the covariances, 0 to 1; above 0 where they are singular.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        self.criterion = WMSELoss(
            options.embedding_dim,
            eps=options.eps,
            track_running_stats=False,
            w_iter=options.repeats,
            w_size=options.whitening_size,
        )

    @classmethod
    def complete(cls, options: Mapping[str, Any], images: int, batch_size: int) -> dict[str, Any]:
        size = options["whitening_size"] or next((n for n in SIZES if batch_size % n == 0), batch_size)
        if size < 0 or batch_size % size:
            raise ValueError(f"--whitening-size must divide the batch size {batch_size}, got {size}")
        dim = options["embedding_dim"] or min(WIDEST, size // 2)
        if 2 * dim > size:
            raise ValueError(f"--embedding-dim must be at most half of --whitening-size {size}, got {dim}")
        return {**options, "whitening_size": size, "embedding_dim": dim}

    def loss(self, *embeddings: Tensor) -> Tensor:
        loss: Tensor = self.criterion(torch.cat(embeddings))
        return loss
