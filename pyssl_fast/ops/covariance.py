"""Covariance family, the operators. What they compute is said by their twins in kernels/reference/covariance.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyssl_fast.backend import kernels
from pyssl_fast.ops.registry import define

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def row_side(samples: int, dim: int) -> bool:
    """Which side of C = AᵀB is built: AAᵀ [N, N] where it is the smaller, since ‖AᵀB‖² = ⟨AAᵀ, BBᵀ⟩; else C [D, D].

    At N = D both cost the same, and C needs no difference of totals: it is the one.
    """
    return samples < dim


# What a pointer would not survive is checked here, for those who call operators directly; functional/ says it better.
def _check_views(x: Tensor, y: Tensor | None, shape: str) -> None:
    if x.dim() != shape.count(",") + 1 or 0 in x.shape:
        raise ValueError(f"x must be {shape}, not empty; got {list(x.shape)}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x must be float32, float16, bfloat16 or float64; got {x.dtype}")
    if y is None:
        return
    if y.shape != x.shape or y.device != x.device:
        raise ValueError(f"y must be {list(x.shape)} on {x.device}; got {list(y.shape)} on {y.device}")
    if y.dtype != x.dtype:
        raise TypeError(f"x and y must have one dtype; got {x.dtype} and {y.dtype}")


def _check_statistics(like: Tensor, **given: tuple[Tensor, tuple[int, ...]]) -> None:
    for name, (g, shape) in given.items():
        if g.dtype != torch.float64 or g.shape != shape or g.device != like.device:
            wanted = f"float64 {list(shape)} on {like.device}"
            raise ValueError(f"{name} must be {wanted}; got {g.dtype} {list(g.shape)} on {g.device}")


def _views(y: Tensor | None) -> int:
    return 1 if y is None else 2


def _grads_fake(x: Tensor, y: Tensor | None, needs_x: bool, needs_y: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if needs_x else (0,)), x.new_empty(x.shape if needs_y and y is not None else (0,))


# ---- auto_covariance: every view with itself ------------------------------------------------------------------------


def gram_shapes(x: Tensor, y: Tensor | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of what auto_covariance keeps for its backward: the matrices on the cheaper side, and which of them to redo in
    float64."""
    samples, positions, dim = x.shape
    side = min(samples, dim)
    return (_views(y), positions, side, side), (_views(y), positions)


def _auto(x: Tensor, y: Tensor | None, gradient: bool, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_views(x, y, "[N, E, D]")
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = kernels(backend, "covariance").auto_covariance(
        x, y, gradient
    )
    return result


def _auto_fake(
    x: Tensor, y: Tensor | None, gradient: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _, positions, dim = x.shape
    gram, exact = gram_shapes(x, y)
    if backend == "reference" or not gradient:
        gram, exact = (_views(y), positions, 0, 0), (0, 0)
    return (
        x.new_empty(_views(y), positions, dim, dtype=torch.float64),
        x.new_empty(_views(y), positions, dtype=torch.float64),
        x.new_empty((), dtype=torch.float64),
        x.new_empty(gram, dtype=torch.float32),
        x.new_empty(exact, dtype=torch.bool),
    )


def _auto_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, _, ctx.backend = inputs
    _, _, _, gram, exact = output
    ctx.mark_non_differentiable(gram, exact)
    ctx.save_for_backward(x, y, gram, exact)


def _auto_autograd(
    ctx: Any, grad_square: Tensor, grad_off_diagonal: Tensor, grad_distance: Tensor, *_: Any
) -> tuple[Any, ...]:
    x, y, gram, exact = ctx.saved_tensors
    needs_x, needs_y = ctx.needs_input_grad[:2]
    grad_x, grad_y = torch.ops.pyssl_fast.auto_covariance_backward(
        grad_square, grad_off_diagonal, grad_distance, x, y, gram, exact, needs_x, needs_y, ctx.backend
    )
    return grad_x if needs_x else None, grad_y if needs_y else None, None, None


def _auto_backward(
    grad_square: Tensor,
    grad_off_diagonal: Tensor,
    grad_distance: Tensor,
    x: Tensor,
    y: Tensor | None,
    gram: Tensor,
    exact: Tensor,
    needs_x: bool,
    needs_y: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _check_views(x, y, "[N, E, D]")
    views, (_, positions, dim) = _views(y), x.shape
    _check_statistics(
        x,
        grad_square=(grad_square, (views, positions, dim)),
        grad_off_diagonal=(grad_off_diagonal, (views, positions)),
        grad_distance=(grad_distance, ()),
    )
    if backend != "reference":
        _check_gram(x, gram, exact, *gram_shapes(x, y))
    result: tuple[Tensor, Tensor] = kernels(backend, "covariance").auto_covariance_backward(
        grad_square, grad_off_diagonal, grad_distance, x, y, gram, exact, needs_x, needs_y and y is not None
    )
    return result


def _check_gram(
    x: Tensor, gram: Tensor, exact: Tensor, gram_shape: tuple[int, ...], exact_shape: tuple[int, ...]
) -> None:
    fits = gram.shape == gram_shape and gram.dtype == torch.float32 and gram.device == x.device
    if not fits or exact.shape != exact_shape or exact.dtype != torch.bool or exact.device != x.device:
        raise ValueError(
            f"gram and exact must be the forward pass's with gradient=True, float32 {list(gram_shape)} and bool"
            f" {list(exact_shape)}; got {gram.dtype} {list(gram.shape)} and {exact.dtype} {list(exact.shape)}"
        )


def _auto_backward_fake(
    grad_square: Tensor,
    grad_off_diagonal: Tensor,
    grad_distance: Tensor,
    x: Tensor,
    y: Tensor | None,
    gram: Tensor,
    exact: Tensor,
    needs_x: bool,
    needs_y: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _grads_fake(x, y, needs_x, needs_y)


# The fewest operations, of each view with K = min(N, D) and L = max(N, D): K²L for the symmetric matrix and 2K²L for
# its product with A, that is 1½ matrix products of 2·K²·L. Bytes: each view read twice, each gradient written once.
define(
    "auto_covariance(Tensor x, Tensor? y, bool gradient, str backend)"
    " -> (Tensor square, Tensor off_diagonal, Tensor distance, Tensor gram, Tensor exact)",
    kernel=_auto,
    fake=_auto_fake,
    setup_context=_auto_setup,
    backward=_auto_autograd,
    autocast=0,
)
define(
    "auto_covariance_backward(Tensor grad_square, Tensor grad_off_diagonal, Tensor grad_distance, Tensor x, Tensor? y,"
    " Tensor gram, Tensor exact, bool needs_x, bool needs_y, str backend) -> (Tensor grad_x, Tensor grad_y)",
    kernel=_auto_backward,
    fake=_auto_backward_fake,
)


# ---- cross_correlation: two views, each column normalised over the batch ---------------------------------------------


def cross_shapes(x: Tensor, y: Tensor | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of what cross_correlation keeps for its backward: both Gram matrices, or C; and whether to redo it in float64."""
    samples, dim = x.shape
    return ((_views(y), samples, samples) if row_side(samples, dim) else (1, dim, dim)), (1,)


def _cross(
    x: Tensor, y: Tensor | None, eps: float, gradient: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_views(x, y, "[N, D]")
    result: tuple[Tensor, Tensor, Tensor, Tensor] = kernels(backend, "covariance").cross_correlation(
        x, y, eps, gradient
    )
    return result


def _cross_fake(
    x: Tensor, y: Tensor | None, eps: float, gradient: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gram, exact = cross_shapes(x, y)
    if backend == "reference" or not gradient:
        gram, exact = (0, 0, 0), (0,)
    return (
        x.new_empty(x.shape[1], dtype=torch.float64),
        x.new_empty((), dtype=torch.float64),
        x.new_empty(gram, dtype=torch.float32),
        x.new_empty(exact, dtype=torch.bool),
    )


def _cross_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, ctx.eps, _, ctx.backend = inputs
    _, _, gram, exact = output
    ctx.mark_non_differentiable(gram, exact)
    ctx.save_for_backward(x, y, gram, exact)


def _cross_autograd(ctx: Any, grad_diagonal: Tensor, grad_off_diagonal: Tensor, *_: Any) -> tuple[Any, ...]:
    x, y, gram, exact = ctx.saved_tensors
    needs_x, needs_y = ctx.needs_input_grad[:2]
    grad_x, grad_y = torch.ops.pyssl_fast.cross_correlation_backward(
        grad_diagonal, grad_off_diagonal, x, y, ctx.eps, gram, exact, needs_x, needs_y, ctx.backend
    )
    return grad_x if needs_x else None, grad_y if needs_y else None, None, None, None


def _cross_backward(
    grad_diagonal: Tensor,
    grad_off_diagonal: Tensor,
    x: Tensor,
    y: Tensor | None,
    eps: float,
    gram: Tensor,
    exact: Tensor,
    needs_x: bool,
    needs_y: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _check_views(x, y, "[N, D]")
    _check_statistics(x, grad_diagonal=(grad_diagonal, (x.shape[1],)), grad_off_diagonal=(grad_off_diagonal, ()))
    if backend != "reference":
        _check_gram(x, gram, exact, *cross_shapes(x, y))
    result: tuple[Tensor, Tensor] = kernels(backend, "covariance").cross_correlation_backward(
        grad_diagonal, grad_off_diagonal, x, y, eps, gram, exact, needs_x, needs_y and y is not None
    )
    return result


def _cross_backward_fake(
    grad_diagonal: Tensor,
    grad_off_diagonal: Tensor,
    x: Tensor,
    y: Tensor | None,
    eps: float,
    gram: Tensor,
    exact: Tensor,
    needs_x: bool,
    needs_y: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _grads_fake(x, y, needs_x, needs_y)


# 3 matrix products of 2·K²·L on either side: on the rows' two symmetric ones at half the price and two more, on the
# columns' C and two more. Without y half of that. Bytes: each view read twice, each gradient written once.
define(
    "cross_correlation(Tensor x, Tensor? y, float eps, bool gradient, str backend)"
    " -> (Tensor diagonal, Tensor off_diagonal, Tensor gram, Tensor exact)",
    kernel=_cross,
    fake=_cross_fake,
    setup_context=_cross_setup,
    backward=_cross_autograd,
    autocast=0,
)
define(
    "cross_correlation_backward(Tensor grad_diagonal, Tensor grad_off_diagonal, Tensor x, Tensor? y, float eps,"
    " Tensor gram, Tensor exact, bool needs_x, bool needs_y, str backend) -> (Tensor grad_x, Tensor grad_y)",
    kernel=_cross_backward,
    fake=_cross_backward_fake,
)


# ---- decorrelation: what is watched, without a gradient -------------------------------------------------------------


def _decorrelation(x: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    _check_views(x, None, "[N, D]")
    result: tuple[Tensor, Tensor, Tensor] = kernels(backend, "covariance").decorrelation(x)
    return result


def _decorrelation_fake(x: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    side = min(x.shape)
    return (
        x.new_empty(x.shape[1], dtype=torch.float64),
        x.new_empty((), dtype=torch.float64),
        x.new_empty(side, side, dtype=torch.float64),
    )


# K²·L operations in float64 for the matrix, D²·N for the correlations, which have no cheaper side. Bytes: x once.
define(
    "decorrelation(Tensor x, str backend) -> (Tensor square, Tensor off_correlation, Tensor gram)",
    kernel=_decorrelation,
    fake=_decorrelation_fake,
    autocast=0,
)


# ---- characteristic: the empirical characteristic functions of columns ----------------------------------------------


def _check_frequencies(step: float, count: int) -> None:
    if not 0 < step < math.inf or count < 1:
        raise ValueError(f"step must be above 0 and count at least 1; got {step} and {count}")


def _characteristic(x: Tensor, step: float, count: int, backend: str) -> tuple[Tensor, Tensor]:
    _check_views(x, None, "[G, N, D]")
    _check_frequencies(step, count)
    result: tuple[Tensor, Tensor] = kernels(backend, "covariance").characteristic(x, step, count)
    return result


def _characteristic_fake(x: Tensor, step: float, count: int, backend: str) -> tuple[Tensor, Tensor]:
    groups, _, dim = x.shape
    cosine, sine = (x.new_empty(groups, count, dim, dtype=torch.float64) for _ in range(2))
    return cosine, sine


def _characteristic_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.step, _, ctx.backend = inputs
    ctx.save_for_backward(x)


def _characteristic_autograd(ctx: Any, grad_cosine: Tensor, grad_sine: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    grad = torch.ops.pyssl_fast.characteristic_backward(grad_cosine, grad_sine, x, ctx.step, ctx.backend)
    return grad, None, None, None


def _characteristic_backward(grad_cosine: Tensor, grad_sine: Tensor, x: Tensor, step: float, backend: str) -> Tensor:
    _check_views(x, None, "[G, N, D]")
    count = grad_cosine.shape[1] if grad_cosine.dim() == 3 else 0
    _check_frequencies(step, count)
    shape = (x.shape[0], count, x.shape[2])
    _check_statistics(x, grad_cosine=(grad_cosine, shape), grad_sine=(grad_sine, shape))
    result: Tensor = kernels(backend, "covariance").characteristic_backward(grad_cosine, grad_sine, x, step)
    return result


def _characteristic_backward_fake(
    grad_cosine: Tensor, grad_sine: Tensor, x: Tensor, step: float, backend: str
) -> Tensor:
    return x.new_empty(x.shape)


# Of each value a sine, a cosine and 4 operations for every frequency, forward and backward alike. Bytes: x read twice,
# its gradient written once.
define(
    "characteristic(Tensor x, float step, int count, str backend) -> (Tensor cosine, Tensor sine)",
    kernel=_characteristic,
    fake=_characteristic_fake,
    setup_context=_characteristic_setup,
    backward=_characteristic_autograd,
)
define(
    "characteristic_backward(Tensor grad_cosine, Tensor grad_sine, Tensor x, float step, str backend) -> Tensor",
    kernel=_characteristic_backward,
    fake=_characteristic_backward_fake,
)


# ---- spread: views around the mean of some ---------------------------------------------------------------------------


def _check_spread(x: Tensor, centres: int) -> None:
    _check_views(x, None, "[V, N, D]")
    if not 1 <= centres <= len(x):
        raise ValueError(f"centres must be 1 to x's {len(x)} views; got {centres}")


def _spread(x: Tensor, centres: int, backend: str) -> Tensor:
    _check_spread(x, centres)
    result: Tensor = kernels(backend, "covariance").spread(x, centres)
    return result


def _spread_fake(x: Tensor, centres: int, backend: str) -> Tensor:
    return x.new_empty((), dtype=torch.float64)


def _spread_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.centres, ctx.backend = inputs
    ctx.save_for_backward(x)


def _spread_autograd(ctx: Any, grad_distance: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    return torch.ops.pyssl_fast.spread_backward(grad_distance, x, ctx.centres, ctx.backend), None, None


def _spread_backward(grad_distance: Tensor, x: Tensor, centres: int, backend: str) -> Tensor:
    _check_spread(x, centres)
    _check_statistics(x, grad_distance=(grad_distance, ()))
    result: Tensor = kernels(backend, "covariance").spread_backward(grad_distance, x, centres)
    return result


def _spread_backward_fake(grad_distance: Tensor, x: Tensor, centres: int, backend: str) -> Tensor:
    return x.new_empty(x.shape)


# Bytes: x read twice, its gradient written once.
define(
    "spread(Tensor x, int centres, str backend) -> Tensor",
    kernel=_spread,
    fake=_spread_fake,
    setup_context=_spread_setup,
    backward=_spread_autograd,
)
define(
    "spread_backward(Tensor grad_distance, Tensor x, int centres, str backend) -> Tensor",
    kernel=_spread_backward,
    fake=_spread_backward_fake,
)
