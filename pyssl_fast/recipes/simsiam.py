"""SimSiam (Chen and He 2021): a view predicts the other's embedding; neither negatives nor a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from pyssl_fast.modules import ProjectionHead, SimSiamPredictionHead
from pyssl_fast.recipes.recipe import Budget, option
from pyssl_fast.recipes.two_views import PredictedViews


class SimSiam(PredictedViews):
    title = "SimSiam"
    budgets: ClassVar[dict[str, Budget]] = {  # larger steps leave fewer directions: at 5e-3, 10 of 512 and not 43
        "mnist5k": Budget(epochs=20, batch_size=128, learning_rate=1e-3),
        "fashion-mnist": Budget(epochs=15, batch_size=128, learning_rate=1e-3),
        "": Budget(epochs=100, batch_size=128, learning_rate=1e-3),
    }

    @dataclass(frozen=True)
    class Options(PredictedViews.Options):
        embedding_dim: int = option(512, "Length of the embeddings; the predictor's hidden layer is a quarter of it.")
        output_norm: bool = option(True, "Batch norm on the embeddings, which holds a collapse up.")

    @staticmethod
    def head(features: int, options: Any) -> nn.Module:
        dim = options.embedding_dim
        return ProjectionHead(features, dim, dim, hidden_layers=2, output_norm=options.output_norm)

    @staticmethod
    def prediction_head(options: Any) -> nn.Module:
        return SimSiamPredictionHead(options.embedding_dim, max(1, options.embedding_dim // 4), options.embedding_dim)
