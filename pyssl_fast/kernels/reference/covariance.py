"""Covariance family, the plain twins: reductions over C = AᵀB that hold C [D, D].

A and B are x and y [N, D] less the means of their columns. Sums are over the N samples; none is divided by N. All is
computed in float32 at least: sums of squares soon leave float16.
"""

from __future__ import annotations

import torch
from torch import Tensor

# ---- auto_covariance: every view with itself ------------------------------------------------------------------------


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _centred(x: Tensor) -> Tensor:
    x = _wide(x)
    return x - x.mean(0)


def _off_diagonal(c: Tensor) -> Tensor:
    """c [..., D, D] with zeros on the diagonal."""
    return c - torch.diag_embed(c.diagonal(dim1=-2, dim2=-1))


def auto_covariance(x: Tensor, y: Tensor | None, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of each view, and of each of E positions, with C_e = A_eᵀA_e:

        square        [V, E, D] float64: the diagonals of C
        off_diagonal  [V, E] float64: Σ_{d≠d'} C_dd'²
        distance      [] float64: Σ (x − y)²; 0 with one view

    x, y: [N, E, D]; V = 1 without y, else 2. gradient: whether backward will come. Last are what backward wants to be
    given back: [V, E, K, K] and [V, E] bool, both empty here.
    """
    views = (x,) if y is None else (x, y)
    squares, totals = [], []
    for a in map(_centred, views):
        c = torch.einsum("ned,nef->edf", a, a)
        squares.append(a.square().sum(0).double())
        totals.append(_off_diagonal(c).square().sum((1, 2)).double())
    distance = x.new_zeros(()) if y is None else (_wide(x) - _wide(y)).square().sum()
    nothing = x.new_empty(len(views), x.shape[1], 0, 0, dtype=torch.float32), x.new_empty(0, 0, dtype=torch.bool)
    return torch.stack(squares), torch.stack(totals), distance.double(), *nothing


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
    """∂x = 4·∂off·A·C_off + 2·A·∂square + 2·∂distance·(x − y), for each of the views; [0] for one not needed."""
    grads = []
    for view, (a, other, needed) in enumerate(((x, y, needs_x), (y, x, needs_y))):
        if a is None or not needed:
            grads.append(x.new_empty(0))
            continue
        centred = _centred(a)
        square, off, distance = (g.to(centred) for g in (grad_square[view], grad_off_diagonal[view], grad_distance))
        c = _off_diagonal(torch.einsum("ned,nef->edf", centred, centred))
        grad = 4 * off[:, None] * torch.einsum("ned,edf->nef", centred, c) + 2 * square * centred
        if other is not None:
            grad = grad + 2 * distance * (_wide(a) - _wide(other))
        grads.append(grad.to(a.dtype).contiguous())
    return grads[0], grads[1]


# ---- cross_correlation: two views, each column normalised over the batch ---------------------------------------------


def _normalized(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Columns of mean 0 and variance v/(v + eps), as batch normalisation makes them, and 1/√(v + eps) [D].

    A column without variance and without eps is 0.
    """
    a = _centred(x)
    variance = a.square().mean(0) + eps
    inverse = torch.where(variance == 0, 0, variance.rsqrt())
    return a * inverse, inverse


def cross_correlation(x: Tensor, y: Tensor | None, eps: float, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With the columns of x and y normalised over the batch, and C = AᵀB of these (B = A without y):

        diagonal      [D] float64: the diagonal of C
        off_diagonal  [] float64: Σ_{d≠d'} C_dd'²

    x, y: [N, D]. gradient: whether backward will come. Last are what backward wants to be given back: matrices of
    float32 and [1] bool, both empty here.
    """
    a, _ = _normalized(x, eps)
    b = a if y is None else _normalized(y, eps)[0]
    c = a.T @ b
    nothing = x.new_empty(0, 0, 0, dtype=torch.float32), x.new_empty(0, dtype=torch.bool)
    return c.diagonal().double(), _off_diagonal(c).square().sum().double(), *nothing


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
    """∂A = 2·∂off·B·C_offᵀ + B·∂diagonal, back through the normalisation of A: ∂x = (∂A − mean ∂A − A·mean(A∘∂A))/√…"""
    a, inverse_a = _normalized(x, eps)
    diagonal, off = grad_diagonal.to(a), grad_off_diagonal.to(a)
    b, inverse_b = (a, inverse_a) if y is None else _normalized(y, eps)
    c = _off_diagonal(a.T @ b)
    grads = []
    for own, other, c_own, inverse, needed in ((a, b, c.T, inverse_a, needs_x), (b, a, c, inverse_b, needs_y)):
        if not needed:
            grads.append(x.new_empty(0))
            continue
        grad = 2 * off * (other @ c_own) + diagonal * other
        if y is None:
            grad = 2 * grad
        grad = inverse * (grad - grad.mean(0) - own * (own * grad).mean(0))
        grads.append(grad.to(x.dtype).contiguous())
    return grads[0], grads[1]


# ---- decorrelation: what is watched, without a gradient -------------------------------------------------------------


def decorrelation(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of x [N, D]:

    square           [D] float64: Σ A² of every column
    off_correlation  [] float64: Σ_{d≠d'} |correlation of columns d and d'|, 0 for a column without variance
    gram             [K, K] float64: AᵀA, or AAᵀ where N < D; its eigenvalues are the squared singular values of A
    """
    a = _centred(x)
    c = a.T @ a
    inverse = torch.where(c.diagonal() == 0, 0, c.diagonal().rsqrt())
    correlation = _off_diagonal(inverse[:, None] * c * inverse)
    gram = a @ a.T if x.shape[0] < x.shape[1] else c
    return a.square().sum(0).double(), correlation.abs().sum().double(), gram.double()


# ---- characteristic: the empirical characteristic functions of columns ----------------------------------------------


def characteristic(x: Tensor, step: float, count: int) -> tuple[Tensor, Tensor]:
    """Of the columns of each of G groups, at the frequencies t_k = k·step, k = 1 … count:

        cosine, sine  [G, count, D] float64: means of cos(t_k·x) and of sin(t_k·x) over the samples

    x: [G, N, D].
    """
    angles = [k * step * x for k in range(1, count + 1)]
    cosine = torch.stack([angle.cos().mean(1) for angle in angles], 1)
    sine = torch.stack([angle.sin().mean(1) for angle in angles], 1)
    return cosine.double(), sine.double()


def characteristic_backward(grad_cosine: Tensor, grad_sine: Tensor, x: Tensor, step: float) -> Tensor:
    """∂x = Σ_k t_k·(∂sine_k·cos(t_k·x) − ∂cosine_k·sin(t_k·x)) / N."""
    wide = torch.promote_types(x.dtype, torch.float32)
    grad = torch.zeros_like(x, dtype=wide)
    for k, (by_cosine, by_sine) in enumerate(zip(grad_cosine.unbind(1), grad_sine.unbind(1), strict=True), 1):
        angle = k * step * x
        turned = by_sine.to(wide)[:, None] * angle.cos() - by_cosine.to(wide)[:, None] * angle.sin()
        grad += k * step / x.shape[1] * turned
    return grad.to(x.dtype)
