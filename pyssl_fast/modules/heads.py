"""Heads that stand on an encoder while it is trained, and are dropped afterwards."""

from __future__ import annotations

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """SimCLR's projector: linear, batch norm, ReLU, linear. With two hidden layers, the expander of VICReg and others.

    Args:
        in_dim: length of the encoder's features.
        hidden_dim: width of a hidden layer.
        out_dim: length of the embeddings.
        hidden_layers: their number, each followed by batch norm and ReLU.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 256, out_dim: int = 128, *, hidden_layers: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in [in_dim, *[hidden_dim] * (hidden_layers - 1)]:
            layers += [nn.Linear(width, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_dim, out_dim))

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
