"""MeanShift (Koohpayegani et al. 2021): a view moves towards the nearest earlier keys of another, by a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from pyssl_fast.losses import MeanShiftLoss
from pyssl_fast.modules import PredictionHead
from pyssl_fast.recipes.momentum import Teacher, check_momentum
from pyssl_fast.recipes.recipe import Budget, option
from pyssl_fast.recipes.two_views import QueuedViews


class MeanShift(QueuedViews):
    title = "MeanShift"
    budgets: ClassVar[dict[str, Budget]] = {  # an epoch takes 3/5 of SimCLR's: one view alone gets a gradient
        "mnist5k": Budget(epochs=28),
        "fashion-mnist": Budget(epochs=20),
        "": Budget(epochs=100),
    }

    @dataclass(frozen=True)
    class Options(QueuedViews.Options):
        neighbours: int = option(5, "Keys that a view moves towards; the other view's own key is the first of them.")
        momentum: float = option(0.95, "Of the teacher; 0.99 suits runs of many thousand steps.")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        check_momentum(options.momentum)
        if not 1 <= options.neighbours <= options.queue_size:
            raise ValueError(f"--neighbours must be 1 to --queue-size {options.queue_size}, got {options.neighbours}")
        self.momentum = options.momentum
        self.predictor = PredictionHead(options.embedding_dim)
        self.teacher = Teacher(self.encoder, self.projector)
        self.criterion = MeanShiftLoss(count=options.neighbours, normalize_bank=False)

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Queries, and their targets."""
        first, second = views
        return self.predictor(self(first)), self.teacher(second)

    def loss(self, *embeddings: Tensor) -> Tensor:
        query, target = embeddings
        self.enqueue(target)  # before: the target is its own nearest neighbour
        assert self.queue is not None
        loss: Tensor = self.criterion(query, target, self.queue.keys)
        return loss

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.encoder, self.projector, momentum=self.momentum)
