"""MoCo v2 (Chen et al. 2020) and v3 (Chen et al. 2021): a view's key is another's by a teacher; earlier keys repel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyssl_fast.losses import InfoNCELoss
from pyssl_fast.modules import PredictionHead
from pyssl_fast.recipes.momentum import Teacher, check_momentum, rising
from pyssl_fast.recipes.recipe import option
from pyssl_fast.recipes.two_views import QueuedViews


class MoCo(QueuedViews):
    """Version 2: the negatives are a queue of the teacher's keys. Shuffling batch norm needs several devices.

    Version 3: the negatives are the other keys of the batch, the queries pass a predictor, both views are queries, and
    the momentum rises to 1.
    """

    title = "MoCo"

    @dataclass(frozen=True)
    class Options(QueuedViews.Options):
        version: int = option(2, "2: with a queue; 3: without one, with a predictor, symmetric.")
        temperature: float = option(0.2, "Temperature of the softmax over similarities.")
        momentum: float = option(0.99, "Of the teacher; 0.999 suits runs of many thousand steps.")
        symmetric: bool = option(False, "Both views are queries, each against the other's key (version 3: always).")

    def __init__(self, encoder: nn.Module, features: int, options: Options) -> None:
        super().__init__(encoder, features, options)
        check_momentum(options.momentum)
        self.options = options
        self.symmetric = options.symmetric or options.version == 3
        self.predictor = PredictionHead(options.embedding_dim) if options.version == 3 else nn.Identity()
        self.teacher = Teacher(self.encoder, self.projector)
        self.criterion = InfoNCELoss(temperature=options.temperature, negatives_normalized=True)

    @classmethod
    def complete(cls, options: Mapping[str, Any], images: int, batch_size: int) -> dict[str, Any]:
        if options["version"] not in (2, 3):
            raise ValueError(f"--version must be 2 or 3, got {options['version']}")
        if options["version"] == 2:
            return super().complete(options, images, batch_size)
        if options["queue_size"]:
            raise ValueError("--queue-size belongs to version 2; version 3 has no queue")
        return dict(options)

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Queries, then their keys."""
        first, second = views
        if not self.symmetric:
            return self(first), self.teacher(second)
        queries, keys = self.predictor(self(torch.cat([first, second]))), self.teacher(torch.cat([second, first]))
        return *queries.chunk(2), *keys.chunk(2)

    def loss(self, *embeddings: Tensor) -> Tensor:
        half = len(embeddings) // 2
        queries, keys = embeddings[:half], embeddings[half:]
        negatives = None if self.queue is None else self.queue.keys
        losses = [self.criterion(query, key, negatives) for query, key in zip(queries, keys, strict=True)]
        if self.queue is None:
            return 2 * self.options.temperature * torch.stack(losses).sum()
        self.enqueue(torch.cat(keys))
        return torch.stack(losses).mean()

    def after_step(self, progress: float) -> None:
        momentum = self.options.momentum
        if self.options.version == 3:
            momentum = rising(momentum, progress)
        self.teacher.follow(self.encoder, self.projector, momentum=momentum)
