"""Has the encoder learned to give every image the same answer, or to say the same thing many times over?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import check_embeddings, check_two_rows

MIN_SPREAD = 0.1
MIN_RANK = 2.0
NOISE = 8.0  # rounding errors of a Gram matrix reach some 4 eps of its largest eigenvalue


class Decorrelation(NamedTuple):
    """How much of their D dimensions embeddings use.

    Attributes:
        effective_rank: exp of the entropy of the singular values of the centred embeddings, divided by their sum (Roy
            and Vetterli 2007). The number of directions that are really used: k for k equal singular values and no
            others. At most D, and N − 1; 0 where no dimension varies.
        mean_abs_correlation: mean |correlation| over the pairs of dimensions: 1 where all say the same, some 0.8/√N for
            N independent draws. That of a dimension that does not vary counts as 0.
        std: [D] float64, standard deviation of every dimension over the N embeddings: √(Σ (x − mean)² / N).
    """

    effective_rank: float
    mean_abs_correlation: float
    std: Tensor


@torch.no_grad()
def decorrelation(embeddings: Tensor) -> Decorrelation:
    """Effective rank, correlation and standard deviations of one matrix of embeddings, from one pass over it.

    Singular values come from the Gram matrix on the cheaper side: those below 1e-3 of the largest (4e-8 of float64
    embeddings) are lost in its rounding errors and count as 0. NaN in the embeddings comes out as NaN.

    Args:
        embeddings: [N, D], N ≥ 2: float32, float64, or float16 and bfloat16, which are taken to float32.

    Raises:
        TypeError: embeddings that are no floating-point Tensor.
        ValueError: fewer than two rows, no columns, another shape.
    """
    check_embeddings("embeddings", embeddings)
    check_two_rows("embeddings", embeddings)
    samples, dim = embeddings.shape
    x = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        square, off_correlation, gram = torch.ops.pyssl_fast.decorrelation(x, backend.choose("covariance", x))
    rank = effective_rank(gram, NOISE * torch.finfo(x.dtype).eps)
    return Decorrelation(rank, float(off_correlation) / max(1, dim * (dim - 1)), (square / samples).sqrt())


def effective_rank(gram: Tensor, noise: float) -> float:
    """Of a matrix A from its gram AᵀA or AAᵀ; NaN where that is not finite.

    Args:
        gram: [K, K] float64.
        noise: eigenvalues up to this share of the largest are taken for 0.
    """
    if not gram.isfinite().all():
        return float("nan")
    squares = torch.linalg.eigvalsh(gram)
    values = torch.where(squares > noise * squares[-1], squares, 0).sqrt()
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


@dataclass(frozen=True)
class Spread:
    """How far embeddings spread over their space.

    Attributes:
        spread: mean over dimensions of the standard deviation of the L2-normalised embeddings, times √D. 1 when they
            fill the sphere evenly, 0 when all are equal.
        rank: effective rank of the centred normalised embeddings, between 0 and D.
        correlation: mean |correlation| between two dimensions of the normalised embeddings, 0 to 1.
        dim: D.
    """

    spread: float
    rank: float
    correlation: float
    dim: int

    @property
    def collapsed(self) -> bool:
        """All embeddings (nearly) equal, or on (nearly) one line."""
        return not (self.spread >= MIN_SPREAD and self.rank >= MIN_RANK)  # so that NaN counts as collapsed


def measure_spread(embeddings: Tensor) -> Spread:
    """embeddings: [N, D], N ≥ 2, not normalised."""
    unit = F.normalize(embeddings.double().cpu(), dim=1)
    dim = unit.shape[1]
    with backend.use_backend("auto"):  # float64 runs the twin, whatever the losses were told to run on
        rank, correlation, std = decorrelation(unit)
    return Spread(float(std.mean()) * dim**0.5, rank, correlation, dim)
