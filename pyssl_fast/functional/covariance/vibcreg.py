"""VIbCReg: VICReg on correlations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import check_number
from pyssl_fast.functional.covariance.vicreg import Result, VICRegTerms
from pyssl_fast.functional.covariance.views import check_views, learns
from pyssl_fast.ops.similarity import statistics_dtype


def vibcreg(
    z0: Tensor,
    z1: Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 200.0,
    *,
    eps: float = 1e-4,
    return_terms: bool = False,
) -> Result:
    """VIbCReg, variance-invariance-better-covariance regularisation (Lee & Aune 2021).

    VICReg with the covariance term on columns less their means and of length 1, R their products:

        invariance = mean (z0 − z1)²
        variance   = mean over the columns of max(0, 1 − √(variance + eps)): the sum of both views
        covariance = Σ_{d≠d'} R_dd'² / D²: the sum of both views
        loss       = sim_loss_weight·invariance + var_loss_weight·variance + cov_loss_weight·covariance

    which is solo-learn's scaling. One `cross_correlation` of each view with itself: N·D·min(N, D)·6 operations for
    both, forward and backward.

    Args:
        z0, z1: [N, D], N ≥ 2, the two views, alike: float32, float16, bfloat16 or float64.
        sim_loss_weight, var_loss_weight, cov_loss_weight: ≥ 0.
        eps: > 0, added to the variances. A constant column correlates with none.
        return_terms: return (loss, `VICRegTerms`).

    Returns:
        [] loss; float32 (float64 for float64 embeddings). Second derivatives are not supported.

    Raises:
        TypeError: integer embeddings, different dtypes, a weight that is no number.
        ValueError: different shapes or devices, fewer than two rows, no columns, a weight or an eps out of its range.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    z0, z1 = check_views(z0, z1)
    check_weights(sim_loss_weight, var_loss_weight, cov_loss_weight, eps)
    dtype = statistics_dtype(z0)
    terms = VICRegTerms(
        F.mse_loss(z0.to(dtype), z1.to(dtype)).double(),
        _variance(z0, eps) + _variance(z1, eps),
        _covariance(z0) + _covariance(z1),
    )
    loss = terms.weighted(sim_loss_weight, var_loss_weight, cov_loss_weight).to(dtype)
    return (loss, terms.to(dtype)) if return_terms else loss


def check_weights(sim_loss_weight: float, var_loss_weight: float, cov_loss_weight: float, eps: float) -> None:
    weights = {"sim_loss_weight": sim_loss_weight, "var_loss_weight": var_loss_weight}
    for name, value in {**weights, "cov_loss_weight": cov_loss_weight}.items():
        check_number(name, value, low=0)
    check_number("eps", eps)


def _variance(z: Tensor, eps: float) -> Tensor:
    deviation = (z.to(statistics_dtype(z)).var(0).double() + eps).sqrt()
    return (1 - deviation).relu().mean()


def _covariance(z: Tensor) -> Tensor:
    # Its columns have length √N, its C is N·R.
    _, off_diagonal, _, _ = torch.ops.pyssl_fast.cross_correlation(
        z, None, 0.0, learns(z), backend.choose("covariance", z)
    )
    samples, dim = z.shape
    return off_diagonal / (samples * dim) ** 2
