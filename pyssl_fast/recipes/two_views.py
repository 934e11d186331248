"""What most methods share: two views of every image, a projection head on the encoder, a queue of earlier keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyssl_fast import augment
from pyssl_fast.data import ImageData
from pyssl_fast.data.augmentation import two_view_augmentation
from pyssl_fast.losses import NegativeCosineSimilarity
from pyssl_fast.modules import KeyQueue, ProjectionHead
from pyssl_fast.recipes.recipe import Budget, Recipe, option

LONGEST_QUEUE = 4096  # keys, unless more are asked for


class TwoViews(Recipe):
    """Two views by the same augmentation, embedded in one batch."""

    family = "similarity"
    budgets: ClassVar[dict[str, Budget]] = {
        "mnist5k": Budget(epochs=20),
        "fashion-mnist": Budget(epochs=15),
        "": Budget(epochs=100),
    }

    @dataclass(frozen=True)
    class Options:
        embedding_dim: int = option(128, "Length of the embeddings that are compared.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        if options.embedding_dim < 1:
            raise ValueError(f"--embedding-dim must be at least 1, got {options.embedding_dim}")
        self.projector = self.head(features, options)

    @staticmethod
    def head(features: int, options: Any) -> nn.Module:
        """[N, features] -> [N, embedding_dim]."""
        return ProjectionHead(features, out_dim=options.embedding_dim)

    @staticmethod
    def augmentations(data: ImageData) -> Sequence[augment.Recipe]:
        return [two_view_augmentation(data.kind, data.size)] * 2

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.projector(self.encoder(images))
        return embeddings

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self(torch.cat(list(views))).chunk(2)


class ExpandedViews(TwoViews):
    """Two views and a wide head of three layers, for losses that compare dimensions instead of images."""

    family = "covariance"

    @dataclass(frozen=True)
    class Options(TwoViews.Options):
        embedding_dim: int = option(512, "Length of the embeddings, whose dimensions are compared.")
        hidden_dim: int = option(512, "Width of the expander's two hidden layers.")

    @staticmethod
    def head(features: int, options: Any) -> nn.Module:
        if options.hidden_dim < 1:
            raise ValueError(f"--hidden-dim must be at least 1, got {options.hidden_dim}")
        return ProjectionHead(features, options.hidden_dim, options.embedding_dim, hidden_layers=2)


class PredictedViews(TwoViews):
    """Two views; from each, a predictor tells the embedding of the other. Nothing repels.

    What keeps all embeddings from becoming equal is the predictor, and that the predicted ones get no gradient; either
    can be taken away to see them collapse.
    """

    @dataclass(frozen=True)
    class Options(TwoViews.Options):
        predictor: bool = option(True, "Without it the embeddings collapse.")
        stop_gradient: bool = option(True, "Predicted embeddings get no gradient. Without it the embeddings collapse.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        self.stop_gradient = options.stop_gradient
        self.predictor = self.prediction_head(options) if options.predictor else nn.Identity()
        self.criterion = NegativeCosineSimilarity()

    @staticmethod
    @abstractmethod
    def prediction_head(options: Any) -> nn.Module:
        """[N, embedding_dim] -> [N, embedding_dim]."""

    def predicted(self, views: Tensor, embeddings: Tensor) -> Tensor:
        """views: [2N, C, H, W]; embeddings: theirs. What the predictions of the other views are compared with."""
        return embeddings.detach() if self.stop_gradient else embeddings

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Predictions [2N, D] from both views, and what they are compared with: the other views' embeddings."""
        both = torch.cat(list(views))
        embeddings = self(both)
        return self.predictor(embeddings), self.predicted(both, embeddings).roll(len(both) // 2, 0)

    def loss(self, *embeddings: Tensor) -> Tensor:
        loss: Tensor = self.criterion(*embeddings)
        return loss


class QueuedViews(TwoViews):
    """Two views, and the keys of earlier batches. The queue is a part of the checkpoint."""

    @dataclass(frozen=True)
    class Options(TwoViews.Options):
        queue_size: int = option(
            0,
            "Keys of earlier batches that are kept; 0 is half the training images, at most 4,096. In a queue longer"
            " than the training set, images meet their own keys of earlier epochs.",
        )

    queue: KeyQueue | None

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        if options.queue_size < 0:
            raise ValueError(f"--queue-size must not be negative, got {options.queue_size}")
        self.queue = KeyQueue(options.queue_size, options.embedding_dim) if options.queue_size else None

    def enqueue(self, keys: Tensor) -> None:
        """keys: [N, D]; the last ones, where the queue is shorter."""
        assert self.queue is not None
        self.queue.update(keys[-self.queue.size :])

    @classmethod
    def complete(cls, options: Mapping[str, Any], images: int, batch_size: int) -> dict[str, Any]:
        return {**options, "queue_size": options["queue_size"] or min(LONGEST_QUEUE, images // 2)}
