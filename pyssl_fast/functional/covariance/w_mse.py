"""W-MSE: whitened views, drawn together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast.functional.checks import (
    autocast_together,
    check_alike,
    check_count,
    check_embeddings,
    check_number,
    readable,
)
from pyssl_fast.ops.similarity import statistics_dtype


class Whitened(NamedTuple):
    """What `whiten` gives of [G, N, D], with gradients.

    x: [G, N, D] whitened. mean: [G, D]. covariance: [G, D, D], /(N − 1), without eps.
    """

    x: Tensor
    mean: Tensor
    covariance: Tensor


def norm_mse_loss(x0: Tensor, x1: Tensor) -> Tensor:
    """The mean of ‖u0 − u1‖² = 2 − 2·cos, u the rows divided by their length (Ermolov et al. 2021).

    Args:
        x0, x1: [N, D], alike: float32, float16, bfloat16 or float64.

    Returns:
        [] loss; float32 (float64 for float64 rows).

    Raises:
        TypeError: integer rows, two dtypes.
        ValueError: two shapes or devices, empty matrices.
    """
    x0, x1 = autocast_together(x0, x1, elementwise=True)
    check_embeddings("x0", x0)
    check_embeddings("x1", x1)
    check_alike("x1", x1, "x0", x0)
    dtype = statistics_dtype(x0)
    u0, u1 = (F.normalize(x.to(dtype), dim=1) for x in (x0, x1))
    return (2 - 2 * (u0 * u1).sum(1).mean(dtype=torch.float64)).to(dtype)


def whiten(x: Tensor, eps: float = 0.0) -> Whitened:
    """Rows of covariance 1, group by group (Ermolov et al. 2021, section 3): y = L⁻¹(x − mean).

    L Lᵀ = (1 − eps)·C + eps·1 is the Cholesky factorisation, C the covariance over the group's rows. L is solved for
    the rows: no inverse is formed, and all groups go through one factorisation and one solution. Each group takes
    3·N·D² + D³/3 operations for its value, and 5·N·D² for its gradient, which has a closed form: by autograd, through
    the factorisation, both took 32 ms where they take 18 (16 groups of 256 × 128, one thread). Statistics are float32
    at least, under autocast too.

    Args:
        x: [G, N, D], N > D (N ≥ 2 with eps): float32, float16, bfloat16 or float64.
        eps: 0 to 1.

    Returns:
        `Whitened`, float32 (float64 for float64 rows). Second derivatives are not supported.

    Raises:
        TypeError: integer rows, an eps that is no number.
        ValueError: another shape, an empty Tensor, too few rows, an eps out of its range. A covariance that is not
            positive definite: on the CPU alone; on other devices, and in compiled code, its group comes out as NaN.
    """
    check_embeddings("x", x, "[G, N, D]")
    check_number("eps", eps, 0, 1)
    samples, dim = x.shape[1:]
    if samples < (dim + 1 if eps == 0 else 2):
        least = "more than D rows" if eps == 0 else "two rows or more"
        raise ValueError(f"x must have {least} in a group, for a covariance that is not singular; got {list(x.shape)}")
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(statistics_dtype(x))
        mean = x.mean(1)
        white, covariance = _Whiten.apply(x - mean[:, None], eps)
        return Whitened(white, mean, covariance)


class _Whiten(torch.autograd.Function):
    """Rows less their mean [G, N, D] -> the whitened rows Y, and the covariance.

    With S = L⁻¹ dΣ L⁻ᵀ, dL = L·Φ(S), Φ the lower triangle with half its diagonal: dY = dA L⁻ᵀ − Y Φ(S)ᵀ. And Σ is made
    of A: S = (1 − eps)·(Yᵀ dA L⁻ᵀ + its transpose) / (N − 1). So with P = Φ((Yᵀ ∂Y)ᵀ)

        ∂A = (∂Y − Y (P + Pᵀ)·(1 − eps) / (N − 1)) L⁻¹
    """

    @staticmethod
    def forward(ctx: Any, centred: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        covariance = centred.mT @ centred / (centred.shape[1] - 1)
        factor = _factor(covariance, eps)
        white = _solve(factor, centred)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(centred, white, factor)
        return white, covariance

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_covariance: Tensor | None) -> tuple[Tensor | None, None]:
        return _WhitenBackward.apply(grad, grad_covariance, *ctx.saved_tensors, ctx.eps), None


class _WhitenBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor | None,
        grad_covariance: Tensor | None,
        centred: Tensor,
        white: Tensor,
        factor: Tensor,
        eps: float,
    ) -> Tensor:
        divisor = centred.shape[1] - 1
        total = torch.zeros_like(centred) if grad_covariance is None else _of_covariance(centred, grad_covariance)
        if grad is not None:
            lower = (grad.mT @ white).tril()
            lower.diagonal(dim1=1, dim2=2).mul_(0.5)
            along = grad - white @ ((lower + lower.mT) * ((1 - eps) / divisor))
            total = total + torch.linalg.solve_triangular(factor, along, upper=False, left=False)
        return total

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("whiten: second derivatives are not supported")


def _of_covariance(centred: Tensor, grad: Tensor) -> Tensor:
    return centred @ (grad + grad.mT) / (centred.shape[1] - 1)


def whiten_by(centred: Tensor, covariance: Tensor, eps: float) -> Tensor:
    """[G, N, D] of rows less their mean, by covariances [G, D, D]; errors as `whiten`'s."""
    return _solve(_factor(covariance, eps), centred)


def _solve(factor: Tensor, rows: Tensor) -> Tensor:
    """[G, N, D] L⁻¹r of every row r."""
    return torch.linalg.solve_triangular(factor.mT, rows, upper=True, left=False)


def _factor(covariance: Tensor, eps: float) -> Tensor:
    """[G, D, D] L of covariances [G, D, D] with eps; errors as `whiten`'s."""
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    factor, failed = torch.linalg.cholesky_ex(covariance if eps == 0 else (1 - eps) * covariance + eps * eye)
    if readable(covariance):
        singular = (failed != 0) & covariance.isfinite().all(2).all(1)
        if singular.any():
            group = int(singular.nonzero()[0])
            raise ValueError(
                f"the covariance of group {group} must be positive definite, but its first {int(failed[group])} columns"
                " are linearly dependent, or the last of them is constant: more rows in a group or an eps above 0 helps"
            )
    return factor.masked_fill((failed != 0)[:, None, None], torch.nan)


def w_mse(
    z: Tensor,
    num_samples: int = 2,
    w_size: int = 256,
    w_iter: int = 1,
    eps: float = 0.0,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = norm_mse_loss,
    *,
    whitening: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """W-MSE, the distance of whitened views (Ermolov et al. 2021, section 3).

    The B samples are dealt at random into sub-batches of w_size; every view of every sub-batch is whitened by itself,
    and the loss is the mean of loss_fn over the pairs of views, and over w_iter such deals. All of them are whitened
    in one call. The permutations are torch.randperm's of the CPU's generator, one for each deal.

    Args:
        z: [num_samples·B, D], view after view: float32, float16, bfloat16 or float64.
        num_samples: V ≥ 2 views.
        w_size: rows of a sub-batch, more than D unless eps > 0; it divides B.
        w_iter: ≥ 1.
        eps: 0 to 1: as `whiten`'s.
        loss_fn: ([B, D], [B, D]) of two whitened views, their rows in z's order -> [].
        whitening: [G, w_size, D] -> whitened, in place of `whiten` with eps; `modules.Whitening2d` is one.

    Returns:
        [] loss; float32 (float64 for float64 embeddings) where loss_fn keeps the dtype.

    Raises:
        TypeError: integer embeddings, a count that is no int.
        ValueError: another shape, no whole views or sub-batches, a number out of its range, too few rows; on the CPU a
            covariance that is not positive definite.
    """
    check_embeddings("z", z, "[num_samples·B, D]")
    check_settings(num_samples, w_size, w_iter)
    check_number("eps", eps, 0, 1)
    rows, dim = z.shape
    if rows % num_samples:
        raise ValueError(f"z must have num_samples={num_samples} times as many rows as images; got {list(z.shape)}")
    samples = rows // num_samples
    if samples % w_size:
        raise ValueError(
            f"w_size={w_size} must divide the number of images, {samples}, into whole sub-batches; got z of shape"
            f" {list(z.shape)}"
        )
    if whitening is None:
        if eps == 0 and w_size <= dim:
            raise ValueError(f"w_size must be more than D = {dim}, or eps more than 0; got {w_size}")

        def whitening(x: Tensor) -> Tensor:
            return whiten(x, eps).x

    deals = torch.stack([torch.randperm(samples) for _ in range(w_iter)]).to(z.device)  # [I, B]
    dealt = z.reshape(num_samples, samples, dim)[:, deals].view(num_samples, -1, w_size, dim)  # [V, I·S, W, D]
    # Sub-batch after sub-batch, its views in order: so running statistics see them.
    white = whitening(dealt.transpose(0, 1).flatten(0, 1))
    white = white.view(-1, num_samples, w_size, dim).transpose(0, 1).reshape(num_samples, w_iter, samples, dim)
    back = deals.argsort(1)
    total: Tensor | None = None
    for deal in range(w_iter):
        views = [white[view, deal].index_select(0, back[deal]) for view in range(num_samples)]
        for first in range(num_samples - 1):
            for second in range(first + 1, num_samples):
                loss = loss_fn(views[first], views[second])
                total = loss if total is None else total + loss
    assert total is not None
    return total / (w_iter * num_samples * (num_samples - 1) // 2)


def check_settings(num_samples: int, w_size: int, w_iter: int) -> None:
    check_count("num_samples", num_samples, 2)
    check_count("w_size", w_size, 2)
    check_count("w_iter", w_iter)
