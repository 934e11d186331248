"""Has the encoder learned to give every image the same answer? Two numbers that tell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SPREAD = 0.1
MIN_RANK = 2.0


@dataclass(frozen=True)
class Spread:
    """How far embeddings spread over their space.

    Attributes:
        spread: mean over dimensions of the standard deviation of the L2-normalised embeddings, times √D. 1 when they
            fill the sphere evenly, 0 when all are equal.
        rank: effective rank of the centred normalised embeddings, between 0 and D.
    """

    spread: float
    rank: float

    @property
    def collapsed(self) -> bool:
        """All embeddings (nearly) equal, or on (nearly) one line."""
        return not (self.spread >= MIN_SPREAD and self.rank >= MIN_RANK)  # so that NaN counts as collapsed


def measure_spread(embeddings: Tensor) -> Spread:
    """embeddings: [N, D], N ≥ 2, not normalised."""
    unit = F.normalize(embeddings.double().cpu(), dim=1)
    centred = unit - unit.mean(dim=0)
    spread = centred.square().mean(dim=0).sqrt().mean() * unit.shape[1] ** 0.5
    return Spread(float(spread), effective_rank(centred))


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values divided by their sum (Roy and Vetterli 2007).

    k for a matrix with k equal singular values and no others, 0 for a zero matrix, NaN where the matrix has NaN.
    """
    if not matrix.isfinite().all():
        return float("nan")
    values = torch.linalg.svdvals(matrix.double())
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
