"""VICReg: variance, invariance, covariance."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import check_choice, check_number
from pyssl_fast.functional.covariance.views import check_views, learns, positions
from pyssl_fast.ops.similarity import statistics_dtype

VARIANCES = ("mean", "sum")


class VICRegTerms(NamedTuple):
    """The terms of VICReg's loss, [] each, not weighted, with their gradients."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor

    def weighted(self, invariance: float, variance: float, covariance: float) -> Tensor:
        return invariance * self.invariance + variance * self.variance + covariance * self.covariance

    def to(self, dtype: torch.dtype) -> VICRegTerms:
        return VICRegTerms(*(term.to(dtype) for term in self))


# The loss; with return_terms=True the pair (loss, its terms). `Any` spares callers a cast for either.
Result: TypeAlias = Tensor | Any


def vicreg(
    z0: Tensor,
    z1: Tensor,
    lambda_param: float = 25.0,
    mu_param: float = 25.0,
    nu_param: float = 1.0,
    *,
    eps: float = 1e-4,
    variance: str = "mean",
    return_terms: bool = False,
) -> Result:
    """VICReg, variance-invariance-covariance regularisation (Bardes et al. 2022, eq. 6), scaled as its authors' code.

    With C the covariance over the batch, /(N − 1), of a view's columns

        invariance = mean (z0 − z1)²
        variance   = mean over the columns d of max(0, 1 − √(C_dd + eps)): the mean of both views
        covariance = Σ_{d≠d'} C_dd'² / D: the sum of both views
        loss       = lambda_param·invariance + mu_param·variance + nu_param·covariance

    Dimensions between the first and the last are positions: each has its own C, and all terms are means over them.
    One `auto_covariance` gives everything, on the cheaper side of C: N·D·min(N, D)·6 operations for both views, forward
    and backward. What is left is O(D) work in float64.

    Args:
        z0, z1: [N, …, D], N ≥ 2, the two views, alike: float32, float16, bfloat16 or float64.
        lambda_param, mu_param, nu_param: ≥ 0, the weights of invariance, variance and covariance.
        eps: > 0, added to the variances. A constant column gets no gradient from its variance.
        variance: "mean" of the two views' terms, as the authors' code, lightly and pytorch-metric-learning have it; or
            their "sum", as the paper's equation and solo-learn. Nothing else differs between these packages.
        return_terms: return (loss, `VICRegTerms`).

    Returns:
        [] loss; float32 (float64 for float64 embeddings). Second derivatives are not supported.

    Raises:
        TypeError: integer embeddings, different dtypes, a weight that is no number.
        ValueError: different shapes or devices, fewer than two rows, an empty view, a weight or an eps out of its
            range, an unknown variance.
        RuntimeError: a backend was asked for that cannot run on these tensors.
    """
    z0, z1 = check_views(z0, z1, "[N, …, D]")
    check_weights(lambda_param, mu_param, nu_param, eps)
    check_choice("variance", variance, VARIANCES)
    terms = vicreg_terms(positions(z0), positions(z1), eps, 0.5 if variance == "mean" else 1.0)
    dtype = statistics_dtype(z0)
    loss = terms.weighted(lambda_param, mu_param, nu_param).to(dtype)
    return (loss, terms.to(dtype)) if return_terms else loss


def check_weights(lambda_param: float, mu_param: float, nu_param: float, eps: float) -> None:
    for name, value in (("lambda_param", lambda_param), ("mu_param", mu_param), ("nu_param", nu_param)):
        check_number(name, value, low=0)
    check_number("eps", eps)


def vicreg_terms(x: Tensor, y: Tensor | None, eps: float, variance_scale: float) -> VICRegTerms:
    """float64 terms of views [N, E, D]; variance is the views' sum times its scale, covariance their sum."""
    samples, count, dim = x.shape
    square, off_diagonal, distance, _, _ = torch.ops.pyssl_fast.auto_covariance(
        x, y, learns(x, y), backend.choose("covariance", x)
    )
    deviation = (square / (samples - 1) + eps).sqrt()  # [V, E, D]
    return VICRegTerms(
        distance / (samples * count * dim),
        variance_scale * (1 - deviation).relu().mean((1, 2)).sum(),
        off_diagonal.mean(1).sum() / ((samples - 1) ** 2 * dim),
    )
