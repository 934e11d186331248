"""Heads that stand on an encoder while it is trained, and are dropped afterwards."""

from __future__ import annotations

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """SimCLR's projector: linear, batch norm, ReLU, linear. With two hidden layers, the expander of VICReg and others.

    The weights of lightly's heads of the same form fit: the layers have the same names.

    Args:
        in_dim: length of the encoder's features.
        hidden_dim: width of a hidden layer.
        out_dim: length of the embeddings.
        hidden_layers: their number, each followed by batch norm and ReLU.
        output_norm: whether the embeddings pass a batch norm without weights, too.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int = 256,
        out_dim: int = 128,
        *,
        hidden_layers: int = 1,
        output_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in [in_dim, *[hidden_dim] * (hidden_layers - 1)]:
            layers += [nn.Linear(width, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(hidden_dim, out_dim, bias=not output_norm))
        if output_norm:
            layers.append(nn.BatchNorm1d(out_dim, affine=False))
        self.layers = nn.Sequential(*layers)

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


class BYOLProjectionHead(ProjectionHead):
    """Takes the place of lightly's: linear, batch norm, ReLU, linear (Grill et al. 2020, section 3.3)."""

    def __init__(self, input_dim: int = 2048, hidden_dim: int = 4096, output_dim: int = 256) -> None:
        super().__init__(input_dim, hidden_dim, output_dim)


class BYOLPredictionHead(ProjectionHead):
    """Takes the place of lightly's: as the projector, from embeddings to embeddings."""

    def __init__(self, input_dim: int = 256, hidden_dim: int = 4096, output_dim: int = 256) -> None:
        super().__init__(input_dim, hidden_dim, output_dim)


class SimSiamProjectionHead(ProjectionHead):
    """Takes the place of lightly's: three layers, batch norm on the embeddings too (Chen and He 2021, section 3)."""

    def __init__(self, input_dim: int = 2048, hidden_dim: int = 2048, output_dim: int = 2048) -> None:
        super().__init__(input_dim, hidden_dim, output_dim, hidden_layers=2, output_norm=True)


class SimSiamPredictionHead(ProjectionHead):
    """Takes the place of lightly's: linear, batch norm, ReLU, linear, with a bottleneck between."""

    def __init__(self, input_dim: int = 2048, hidden_dim: int = 512, output_dim: int = 2048) -> None:
        super().__init__(input_dim, hidden_dim, output_dim)
