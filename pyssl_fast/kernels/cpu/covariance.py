"""Covariance family on the CPU: see csrc/cpu/covariance/covariance.h."""

from __future__ import annotations

import torch
from torch import Tensor

from pyssl_fast import _cpu
from pyssl_fast.kernels.cpu.pointers import NO_MATRIX, Matrix, matrix, pointer, rows
from pyssl_fast.ops.covariance import cross_shapes, gram_shapes

_Places = tuple[Matrix, int]


def _places(x: Tensor | None) -> _Places:
    """x [N, E, D] as the matrix at its first position, and the step to the next."""
    return (NO_MATRIX, 0) if x is None or x.dim() != 3 else (matrix(x[:, 0]), x.stride(1))


def _views(x: Tensor | None, y: Tensor | None, positions: int) -> _cpu.Views:
    """What the tensors must outlive."""
    return _cpu.Views(_places(x), _places(y), positions, torch.get_num_threads())


def _pair(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return rows(x), None if y is None else rows(y)


def auto_covariance(x: Tensor, y: Tensor | None, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, y = _pair(x, y)
    count, (_, positions, dim) = 1 if y is None else 2, x.shape
    square = x.new_empty(count, positions, dim, dtype=torch.float64)
    off_diagonal = x.new_empty(count, positions, dtype=torch.float64)
    distance = x.new_empty((), dtype=torch.float64)
    gram_shape, exact_shape = gram_shapes(x, y) if gradient else ((count, positions, 0, 0), (0, 0))
    gram = x.new_empty(gram_shape, dtype=torch.float32)
    exact = x.new_empty(exact_shape, dtype=torch.bool)
    _cpu.auto_covariance(
        _views(x, y, positions),
        square.data_ptr(),
        off_diagonal.data_ptr(),
        distance.data_ptr(),
        gram.data_ptr() if gradient else 0,
        exact.data_ptr() if gradient else 0,
    )
    return square, off_diagonal, distance, gram, exact


def auto_covariance_backward(
    grad_square: Tensor,
    grad_off_diagonal: Tensor,
    grad_distance: Tensor,
    x: Tensor,
    y: Tensor | None,
    gram: Tensor,
    exact: Tensor,
    needs_x: bool,
    needs_y: bool,
) -> tuple[Tensor, Tensor]:
    x, y = _pair(x, y)
    grad_square, grad_off_diagonal, gram, exact = (
        g.contiguous() for g in (grad_square, grad_off_diagonal, gram, exact)
    )
    grad_x = x.new_empty(x.shape if needs_x else (0,))
    grad_y = x.new_empty(x.shape if needs_y else (0,))
    positions = x.shape[1]
    _cpu.auto_covariance_backward(
        _views(x, y, positions),
        grad_square.data_ptr(),
        grad_off_diagonal.data_ptr(),
        grad_distance.item(),
        gram.data_ptr(),
        exact.data_ptr(),
        _views(grad_x, grad_y, positions),
    )
    return grad_x, grad_y


def _flat_views(x: Tensor, y: Tensor | None) -> _cpu.Views:
    """Of x, y [N, D], one position."""
    return _views(x[:, None] if x.dim() == 2 else None, None if y is None or y.dim() != 2 else y[:, None], 1)


def cross_correlation(x: Tensor, y: Tensor | None, eps: float, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = _pair(x, y)
    diagonal = x.new_empty(x.shape[1], dtype=torch.float64)
    off_diagonal = x.new_empty((), dtype=torch.float64)
    gram_shape, exact_shape = cross_shapes(x, y) if gradient else ((0, 0, 0), (0,))
    gram = x.new_empty(gram_shape, dtype=torch.float32)
    exact = x.new_empty(exact_shape, dtype=torch.bool)
    _cpu.cross_correlation(
        _flat_views(x, y),
        eps,
        diagonal.data_ptr(),
        off_diagonal.data_ptr(),
        gram.data_ptr() if gradient else 0,
        exact.data_ptr() if gradient else 0,
    )
    return diagonal, off_diagonal, gram, exact


def cross_correlation_backward(
    grad_diagonal: Tensor,
    grad_off_diagonal: Tensor,
    x: Tensor,
    y: Tensor | None,
    eps: float,
    gram: Tensor,
    exact: Tensor,
    needs_x: bool,
    needs_y: bool,
) -> tuple[Tensor, Tensor]:
    x, y = _pair(x, y)
    grad_diagonal, gram = grad_diagonal.contiguous(), gram.contiguous()
    grad_x = x.new_empty(x.shape if needs_x else (0,))
    grad_y = x.new_empty(x.shape if needs_y else (0,))
    _cpu.cross_correlation_backward(
        _flat_views(x, y),
        eps,
        grad_diagonal.data_ptr(),
        grad_off_diagonal.item(),
        gram.data_ptr(),
        pointer(exact),
        _flat_views(grad_x, grad_y),
    )
    return grad_x, grad_y


def decorrelation(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = rows(x)
    side = min(x.shape)
    square = x.new_empty(x.shape[1], dtype=torch.float64)
    off_correlation = x.new_empty((), dtype=torch.float64)
    gram = x.new_empty(side, side, dtype=torch.float64)
    _cpu.decorrelation(_flat_views(x, None), square.data_ptr(), off_correlation.data_ptr(), gram.data_ptr())
    return square, off_correlation, gram


def _groups(x: Tensor) -> _cpu.Views:
    """Of x [G, N, D], a group to each position."""
    return _views(x.transpose(0, 1), None, x.shape[0])


def characteristic(x: Tensor, step: float, count: int) -> tuple[Tensor, Tensor]:
    x = rows(x)
    cosine, sine = (x.new_empty(x.shape[0], count, x.shape[2], dtype=torch.float64) for _ in range(2))
    _cpu.characteristic(_groups(x), step, count, cosine.data_ptr(), sine.data_ptr())
    return cosine, sine


def characteristic_backward(grad_cosine: Tensor, grad_sine: Tensor, x: Tensor, step: float) -> Tensor:
    x, grad_cosine, grad_sine = rows(x), grad_cosine.contiguous(), grad_sine.contiguous()
    grad = x.new_empty(x.shape)
    _cpu.characteristic_backward(
        _groups(x), step, grad_cosine.shape[1], grad_cosine.data_ptr(), grad_sine.data_ptr(), _groups(grad)
    )
    return grad
