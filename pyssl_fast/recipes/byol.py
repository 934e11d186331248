"""BYOL (Grill et al. 2020): a view predicts another's embedding by a teacher; nothing repels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyssl_fast import augment
from pyssl_fast.data import ImageData
from pyssl_fast.data.augmentation import byol_augmentations
from pyssl_fast.modules import BYOLPredictionHead, BYOLProjectionHead
from pyssl_fast.recipes.momentum import Teacher, check_momentum, rising
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import PredictedViews


class BYOL(PredictedViews):
    """Without the stop-gradient the teacher is the network itself."""

    title = "BYOL"

    @dataclass(frozen=True)
    class Options(PredictedViews.Options):
        hidden_dim: int = option(512, "Width of the projector's and the predictor's hidden layer.")
        momentum: float = option(
            0.95, "Of the teacher, at the start; rises to 1. 0.99 suits runs of thousands of steps."
        )

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        check_momentum(options.momentum)
        self.momentum = options.momentum
        self.teacher = Teacher(self.encoder, self.projector) if options.stop_gradient else None

    @staticmethod
    def head(features: int, options: Any) -> nn.Module:
        if options.hidden_dim < 1:
            raise ValueError(f"--hidden-dim must be at least 1, got {options.hidden_dim}")
        return BYOLProjectionHead(features, options.hidden_dim, options.embedding_dim)

    @staticmethod
    def prediction_head(options: Any) -> nn.Module:
        return BYOLPredictionHead(options.embedding_dim, options.hidden_dim, options.embedding_dim)

    @staticmethod
    def augmentations(data: ImageData) -> Sequence[augment.Recipe]:
        return byol_augmentations(data.kind, data.size)

    def predicted(self, views: Tensor, embeddings: Tensor) -> Tensor:
        return embeddings if self.teacher is None else self.teacher(views)

    def loss(self, *embeddings: Tensor) -> Tensor:
        """2 − 2 cos, summed over both views."""
        return 4 + 4 * super().loss(*embeddings)

    def after_step(self, progress: float) -> None:
        if self.teacher is not None:
            self.teacher.follow(self.encoder, self.projector, momentum=rising(self.momentum, progress))
