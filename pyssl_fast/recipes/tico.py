"""TiCo (Zhu et al. 2022): a view agrees with another's by a teacher, and keeps off the directions that are in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pyssl_fast.losses import TiCoLoss
from pyssl_fast.recipes.momentum import Teacher, check_momentum, rising
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import TwoViews


class TiCo(TwoViews):
    title = "TiCo"
    family = "covariance"

    @dataclass(frozen=True)
    class Options(TwoViews.Options):
        beta: float = option(0.9, "How slowly the covariance matrix follows that of the batches.")
        rho: float = option(8.0, "Weight of the covariance.")
        momentum: float = option(0.99, "Of the teacher, at the start; rises to 1.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        check_momentum(options.momentum)
        self.momentum = options.momentum
        self.teacher = Teacher(self.encoder, self.projector)
        self.criterion = TiCoLoss(options.beta, options.rho, dim=options.embedding_dim)

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Embeddings of one view, and the teacher's of the other."""
        first, second = views
        return self(first), self.teacher(second)

    def loss(self, *embeddings: Tensor) -> Tensor:
        loss: Tensor = self.criterion(*embeddings)
        return loss

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.encoder, self.projector, momentum=rising(self.momentum, progress))
