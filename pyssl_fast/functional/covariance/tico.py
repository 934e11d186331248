"""TiCo: transformation invariance and covariance contrast."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast.functional.checks import check_number, check_shape_and_device
from pyssl_fast.functional.covariance.views import check_views
from pyssl_fast.ops.similarity import statistics_dtype


def tico(
    z0: Tensor,
    z1: Tensor,
    covariance: Tensor | None = None,
    beta: float = 0.9,
    rho: float = 8.0,
) -> tuple[Tensor, Tensor]:
    """TiCo, transformation invariance and covariance contrast (Zhu et al. 2022).

    With u0, u1 the rows divided by their length, and C their moving second moment, without gradient

        C    = beta·covariance + (1 − beta)·u0ᵀu0 / N
        loss = 1 − mean_i ⟨u0_i, u1_i⟩ + rho·mean_i u0_iᵀ C u0_i

    Two matrix products, 4·N·D² operations: u0ᵀu0, and u0·C, which is value and gradient at once. C is formed in one
    step and returned; nothing is written in place.

    Args:
        z0: [N, D], N ≥ 2, the view that C is made of: float32, float16, bfloat16 or float64, not normalised.
        z1: [N, D], like z0; the paper's comes from a momentum encoder, without gradient.
        covariance: [D, D] the C of the batch before, symmetric, floating-point; None: zeros.
        beta: 0 to 1.
        rho: ≥ 0.

    Returns:
        ([] loss, [D, D] C), both float32 (float64 where an embedding or the covariance is), under autocast too.
        C is a constant of the gradient.

    Raises:
        TypeError: integer embeddings or covariance, different dtypes, a number that is none.
        ValueError: different shapes or devices, fewer than two rows, no columns, a number out of its range.
    """
    z0, z1 = check_views(z0, z1)
    check_moments(beta, rho)
    samples, dim = z0.shape
    if covariance is None:
        covariance = z0.new_zeros(dim, dim, dtype=statistics_dtype(z0))
    if not isinstance(covariance, Tensor) or not covariance.is_floating_point():
        got = getattr(covariance, "dtype", type(covariance).__name__)
        raise TypeError(f"covariance must be a floating-point Tensor {[dim, dim]}; got {got}")
    check_shape_and_device("covariance", covariance, (dim, dim), "z0", z0)
    dtype = torch.promote_types(statistics_dtype(z0), covariance.dtype)
    with torch.autocast(z0.device.type, enabled=False):  # statistics in float32
        u0, u1 = (F.normalize(z.to(dtype), dim=1) for z in (z0, z1))
        with torch.no_grad():
            moving = torch.addmm(covariance.to(dtype), u0.T, u0, beta=beta, alpha=(1 - beta) / samples)
        quadratic, _ = _Quadratic.apply(u0, moving)
        invariance = 1 - (u0 * u1).sum(dtype=torch.float64) / samples
        return (invariance + rho * quadratic / samples).to(dtype), moving


def check_moments(beta: float, rho: float) -> None:
    check_number("beta", beta, 0, 1)
    check_number("rho", rho, low=0)


class _Quadratic(torch.autograd.Function):
    """Σ_i u_iᵀ C u_i, and u·C, of u [N, D] and a symmetric C [D, D] without gradient.

    Its own Function because autograd would take the product once more for the gradient, 2·u·C.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        product = u @ c
        ctx.save_for_backward(product, c)
        ctx.set_materialize_grads(False)
        return (u * product).sum(dtype=torch.float64), product

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_product: Tensor | None) -> tuple[Tensor | None, None]:
        product, c = ctx.saved_tensors
        of_value = None if grad is None else (2 * grad).to(product.dtype) * product
        if grad_product is None:
            return of_value, None
        of_product = grad_product @ c  # of second derivatives alone
        return of_product if of_value is None else of_value + of_product, None
