"""Heads that stand on an encoder while it is trained, and are dropped afterwards."""

from __future__ import annotations

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """SimCLR's projector: linear, batch norm, ReLU, linear.

    Args:
        in_dim: length of the encoder's features.
        hidden_dim: width of the hidden layer.
        out_dim: length of the embeddings.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 256, out_dim: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, in_dim] -> [N, out_dim], not normalised."""
        embeddings: Tensor = self.layers(features)
        return embeddings


class PredictionHead(ProjectionHead):
    """The predictor of methods whose two branches must differ: a projector from embeddings to embeddings.

    Args:
        dim: length of the embeddings.
        hidden_dim: width of the hidden layer.
    """

    def __init__(self, dim: int, hidden_dim: int = 256) -> None:
        super().__init__(dim, hidden_dim, dim)
