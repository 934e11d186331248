"""Covariance family on GPUs: reductions over C = AᵀB on the cheaper side. Signatures are the twins'.

A is x less the means of its columns, for cross_correlation over their deviation as well; no copy of it is made. With
K = min(N, D) and L = max(N, D): C [D, D] where N ≥ D, else AAᵀ [N, N], since ‖AᵀB‖² = ⟨AAᵀ, BBᵀ⟩ and
A·(AᵀA) = (AAᵀ)·A; of symmetric matrices the tiles on and above the diagonal are computed. Where K² has few tiles the
contraction over L is split among programs, whose sums are added in a fixed order: the same bits in every run.

Off the diagonal of C, the rows' side has T − Δ, T the sum of all squares (in float64, of float32 tiles) and Δ that of
the diagonal. Where a column dominates, or squares leave float32's range, `exact` says so (finish_totals has the rule),
and matrix and product are done again in float64. That is decided on the device: the float64 kernels are launched
always and return at once. It holds to a column ×1e5 (×1e6: 6e-5 wrong for 19 × 50, interpreted); the C++ kernels take
such columns out of the matrix.

                            operations of each view             bytes
    auto_covariance         K²·L                                x twice, K² of float32 twice
    … backward              2·K²·L                              x three times, the gradient once, K² once
    cross_correlation       K²·L                                x twice, K² twice
    … backward              2·K²·L                              x four times, P [N, D] of float32 and the gradient
    decorrelation           K²·L (float64), D²·N                x four times

    extra   K² of float64 for every matrix, beside what is kept for backward; K²·L/K of float32 where the contraction
            is split; P. All are O(N·D).

Predicted time of forward + backward of both views, 6·K²·L operations (×3 for tf32x3) at the dense matrix rate, or
that of reading x and y five times and writing the gradients once where that is more (m). A floor, in ms; **predicted,
not measured**:

    N × D                   float32 "highest"       "high", bf16, fp16
                            A100   H100   B200      A100   H100   B200
    256 × 8,192             0.06m  0.03m  0.01m     0.06m  0.03m  0.01m
    1,024 × 8,192           0.99   0.31   0.14      0.33   0.12m  0.05m
    2,048 × 8,192           3.96   1.25   0.56      1.32   0.42   0.19
    8,192 × 2,048           3.96   1.25   0.56      1.32   0.42   0.19

    with 156 / 495 / 1,100 TFLOP/s for tf32 and 1.55 / 3.35 / 8 TB/s.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
from torch import Tensor

from pyssl_fast.kernels.triton import configs
from pyssl_fast.kernels.triton.configs import Tile
from pyssl_fast.kernels.triton.covariance import kernels
from pyssl_fast.kernels.triton.covariance.characteristic import characteristic as characteristic
from pyssl_fast.kernels.triton.covariance.characteristic import characteristic_backward as characteristic_backward
from pyssl_fast.kernels.triton.covariance.spread import spread as spread
from pyssl_fast.kernels.triton.covariance.spread import spread_backward as spread_backward
from pyssl_fast.ops.covariance import cross_shapes, gram_shapes, row_side

CHAIN = 8  # steps of the contraction that the matrix units add up; only for tf32x3, whose results must be as exact
COLUMN_PROGRAMS = 512
MERGE_WARPS = 8
REDUCE = 512  # of columns or tiles at a time where one program has all


def constants(tile: Tile, precision: str) -> dict[str, Any]:
    """What says how a product is computed; precision "ieee": in float64."""
    chain = CHAIN * tile.block_k if precision == "tf32x3" else 0
    return {"PRECISION": precision, "CHAIN": chain, "BLOCK_K": tile.block_k}


def merge_block(tile: Tile) -> int:
    """Tiles of matrices are merged in tiles of their own, whose sides divide the former's."""
    return min(tile.block_m, 64)


def _tiles(side: int, block: int, triangle: bool) -> tuple[int, int]:
    """(tiles on a side, tiles)."""
    blocks = triton.cdiv(side, block)
    return blocks, blocks * (blocks + 1) // 2 if triangle else blocks * blocks


def _in_rows(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """[N, E, D] both, with one set of strides, of which the last is 1; copies where they are not so."""
    if x.dim() == 2:
        x, y = x[:, None], None if y is None else y[:, None]
    strides = {v.stride() for v in (x, y) if v is not None}
    if len(strides) > 1 or (x.stride(2) != 1 and x.shape[2] > 1):
        return x.contiguous(), None if y is None else y.contiguous()
    return x, y


@dataclasses.dataclass(frozen=True)
class Columns:
    """x and y [N, E, D] with what finish_columns says of them."""

    x: Tensor
    y: Tensor | None
    centre: Tensor  # [V, E, 3, D] float32
    weight: Tensor  # [V, E, D] float64
    square: Tensor  # [V, E, D] float64
    both: Tensor  # [E, D] float64
    weighted: bool

    @property
    def strides(self) -> tuple[int, int]:
        return self.x.stride(0), self.x.stride(1)

    @property
    def rows(self) -> bool:
        """Whether matrices are [N, N]."""
        return row_side(self.x.shape[0], self.x.shape[2])

    @property
    def views(self) -> int:
        return 1 if self.y is None else 2


def _columns(x: Tensor, y: Tensor | None, eps: float | None) -> Columns:
    """eps None: not weighted."""
    x, y = _in_rows(x, y)
    samples, positions, dim = x.shape
    views, row, weighted = 1 if y is None else 2, configs.row(), eps is not None
    blocks = triton.cdiv(dim, row.block_d)
    # Partial sums are 40 bytes a column: of 32 rows or more each, no more than the inputs.
    splits = max(1, min(COLUMN_PROGRAMS // (blocks * positions), samples // 32))
    rows = triton.cdiv(triton.cdiv(samples, splits), row.block_r) * row.block_r
    splits = triton.cdiv(samples, rows)
    double: dict[str, Any] = {"dtype": torch.float64, "device": x.device}
    parts = torch.empty(splits, 5, positions, dim, **double)
    kernels.sum_columns[(blocks, splits, positions)](
        x, y, parts, samples, positions, dim, x.stride(0), x.stride(1), rows,
        CROSS=weighted, BLOCK_R=row.block_r, BLOCK_D=row.block_d, num_warps=row.warps,
    )  # fmt: skip
    result = Columns(
        x, y,
        centre=torch.empty(views, positions, 3, dim, dtype=torch.float32, device=x.device),
        weight=torch.empty(views, positions, dim if weighted else 0, **double),
        square=torch.empty(views, positions, dim, **double),
        both=torch.empty(positions, dim, **double),
        weighted=weighted,
    )  # fmt: skip
    kernels.finish_columns[(blocks, positions)](
        x, y, parts, result.centre, result.weight, result.square, result.both, 0.0 if eps is None else eps,
        samples, positions, dim, x.stride(1), splits, CROSS=weighted, BLOCK_D=row.block_d, num_warps=row.warps,
    )  # fmt: skip
    return result


def _matrices(
    columns: Columns,
    gram: Tensor,  # [G, K, K] out; its dtype is that of the computation
    exact: Tensor | None,  # [G], or [1] where columns are weighted: whether to do anything in float64; None: yes
    pair: bool,
    keep: bool,
) -> tuple[Tensor, int]:
    """The matrices into gram, whole if `keep`. Returns ([G, tiles] float64 sums of squares, or of ⟨first, second⟩ if
    `pair`; tiles)."""
    x, (samples, positions, dim) = columns.x, columns.x.shape
    double = gram.dtype == torch.float64
    grams, side, rows = gram.shape[0], gram.shape[1], columns.rows
    triangle = rows or not columns.weighted or columns.y is None
    length = dim if rows else samples
    tile = configs.exact() if double else configs.matrices(x, columns.weighted)
    blocks, tiles = _tiles(side, tile.block_m, triangle)
    splits = 1 if double else max(1, min(tile.programs // (tiles * grams), length // side))
    step = tile.block_k
    depth = triton.cdiv(triton.cdiv(length, splits), step) * step
    splits = triton.cdiv(length, depth)
    parts = gram if splits == 1 else gram.new_empty(splits, *gram.shape)
    shared = {"COMMON": columns.weighted, "ROWS": rows, "TRIANGLE": triangle, "DOUBLE": double}
    kernels.multiply_self[(tiles, splits, grams)](
        x, columns.y, columns.centre, columns.weight, exact, parts,
        samples, positions, dim, side, *columns.strides, blocks, depth,
        **shared, **constants(tile, "ieee" if double else configs.matrix_precision(x.dtype)),
        WEIGHTED=columns.weighted, BLOCK=tile.block_m, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    block = merge_block(tile)
    blocks, tiles = _tiles(side, block, triangle)
    totals = torch.empty(1 if pair else grams, tiles, dtype=torch.float64, device=x.device)
    kernels.merge_matrices[(tiles, totals.shape[0])](
        parts, gram, exact, totals, side, blocks, splits, grams, tiles,
        **shared, PAIR=pair, KEEP=keep, BLOCK=block, num_warps=MERGE_WARPS,
    )  # fmt: skip
    return totals, tiles


def _off_diagonal(columns: Columns, gram: Tensor, exact: Tensor, diagonal: Tensor, cross: bool, keep: bool) -> Tensor:
    """[G] float64 Σ_{d≠d'} C²; fills gram [G, K, K] and exact."""
    pair = cross and columns.rows and columns.y is not None
    samples, _, dim = columns.x.shape
    flags = exact.view(torch.uint8)
    off = torch.empty(exact.numel(), dtype=torch.float64, device=exact.device)
    scratch = torch.empty(gram.shape, dtype=torch.float64, device=gram.device)
    for double in (False, True):
        totals, tiles = (
            _matrices(columns, scratch, flags, pair, False) if double else _matrices(columns, gram, None, pair, keep)
        )
        kernels.finish_totals[(off.numel(),)](
            totals, columns.square, diagonal, off, flags, samples, columns.views, tiles, dim,
            ROWS=columns.rows, CROSS=cross, DOUBLE=double, BLOCK=REDUCE, num_warps=4,
        )  # fmt: skip
    return off


def auto_covariance(x: Tensor, y: Tensor | None, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the twin, on the cheaper side: K²·L operations a view. 9 launches."""
    gram_shape, exact_shape = gram_shapes(x, y)
    with torch.cuda.device_of(x):
        columns = _columns(x, y, None)
        gram = torch.empty(gram_shape, dtype=torch.float32, device=x.device)
        exact = torch.empty(exact_shape, dtype=torch.bool, device=x.device)
        off = _off_diagonal(columns, gram.flatten(0, 1), exact.flatten(), columns.square, False, gradient)
        distance = off.new_zeros(()) if y is None else columns.both.sum()
    if not gradient:
        gram, exact = gram.new_empty(*gram_shape[:2], 0, 0), exact.new_empty(0, 0)
    return columns.square, off.view(exact_shape), distance, gram, exact


def _grads(x: Tensor, needs_x: bool, needs_y: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if needs_x else (0,)), x.new_empty(x.shape if needs_y else (0,))


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
    """As the twin: 2·K²·L operations a view, the rest of the gradient in the product's epilogue. 6 launches."""
    grads = _grads(x, needs_x, needs_y)
    first, views = (0 if needs_x else 1), int(needs_x) + int(needs_y)
    if not views:
        return grads
    with torch.cuda.device_of(x):
        columns = _columns(x, y, None)
        samples, positions, dim = columns.x.shape
        gram, flags = gram.flatten(0, 1), exact.flatten().view(torch.uint8)
        scratch = torch.empty(gram.shape, dtype=torch.float64, device=x.device)
        _matrices(columns, scratch, flags, False, True)
        incoming = [g.contiguous() for g in (grad_square, grad_off_diagonal, grad_distance)]
        for double in (False, True):
            tile = configs.exact() if double else configs.products(x)
            precision = "ieee" if double else configs.matrix_precision(x.dtype)
            grid = triton.cdiv(samples, tile.block_m), triton.cdiv(dim, tile.block_n), views * positions
            kernels.auto_gradient[grid](
                *incoming, columns.x, columns.y, columns.centre, columns.square, scratch if double else gram, flags,
                *grads, samples, positions, dim, gram.shape[1], *columns.strides, first,
                ROWS=columns.rows, DOUBLE=double, **constants(tile, precision),
                BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return grads


def cross_correlation(x: Tensor, y: Tensor | None, eps: float, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the twin, on the cheaper side: 2·K²·L operations, K²·L without y. 8 launches."""
    gram_shape, exact_shape = cross_shapes(x, y)
    with torch.cuda.device_of(x):
        columns = _columns(x, y, eps)
        gram = torch.empty(gram_shape, dtype=torch.float32, device=x.device)
        exact = torch.empty(exact_shape, dtype=torch.bool, device=x.device)
        diagonal = (columns.square[0] if y is None else columns.both)[0]
        off = _off_diagonal(columns, gram, exact, diagonal, True, gradient)
    if not gradient:
        gram, exact = gram.new_empty(0, 0, 0), exact.new_empty(0)
    return diagonal, off[0], gram, exact


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
    """As the twin: 2·K²·L operations for each gradient. 7 launches."""
    grads = _grads(x, needs_x, needs_y)
    first, views = (0 if needs_x else 1), int(needs_x) + int(needs_y)
    if not views:
        return grads
    with torch.cuda.device_of(x):
        columns = _columns(x, y, eps)
        (samples, _, dim), side, row = columns.x.shape, gram.shape[1], configs.row()
        row_stride = columns.strides[0]
        diagonal = columns.square if y is None else columns.both
        flags = exact.view(torch.uint8)
        scratch = torch.empty(gram.shape, dtype=torch.float64, device=x.device)
        _matrices(columns, scratch, flags, columns.rows and y is not None, True)
        fast = configs.products(x)
        block_m = fast.block_m
        blocks = triton.cdiv(samples, block_m)
        grad = torch.empty(columns.views, samples, dim, dtype=torch.float32, device=x.device)
        along = torch.empty(columns.views, blocks, dim, dtype=torch.float64, device=x.device)
        incoming, grad_diagonal = grad_off_diagonal.contiguous(), grad_diagonal.contiguous()
        for double in (False, True):
            tile = dataclasses.replace(configs.exact(), block_m=block_m) if double else fast
            precision = "ieee" if double else configs.matrix_precision(x.dtype)
            kernels.cross_gradient[(blocks, triton.cdiv(dim, tile.block_n), views)](
                incoming, columns.x, columns.y, columns.centre, columns.weight, diagonal,
                scratch if double else gram, flags, grad, along, samples, dim, side, row_stride, first,
                ROWS=columns.rows, DOUBLE=double, **constants(tile, precision),
                BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        grid = triton.cdiv(samples, row.block_r), triton.cdiv(dim, row.block_d), views
        kernels.normalise_gradient[grid](
            grad_diagonal, columns.x, columns.y, columns.centre, columns.weight, diagonal, grad, along, *grads,
            samples, dim, row_stride, first, blocks, BLOCK_R=row.block_r, BLOCK_D=row.block_d, num_warps=row.warps,
        )  # fmt: skip
    return grads


def decorrelation(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the twin: D²·N operations for the correlations, whose matrix is not held, and K²·L in float64 for gram, whose
    small eigenvalues are what is looked for. 7 launches."""
    with torch.cuda.device_of(x):
        columns, correlated = _columns(x, None, None), _columns(x, None, 0.0)
        samples, _, dim = columns.x.shape
        gram = torch.empty(1, *2 * (min(samples, dim),), dtype=torch.float64, device=x.device)
        _matrices(columns, gram, None, False, True)
        if not columns.rows:
            gram[0].diagonal().copy_(columns.square[0, 0])
        tile = configs.matrices(x, True)
        blocks, tiles = _tiles(dim, tile.block_m, True)
        totals = torch.empty(tiles, dtype=torch.float64, device=x.device)
        kernels.sum_correlations[(tiles,)](
            correlated.x, correlated.centre, totals, samples, dim, correlated.strides[0], blocks,
            **constants(tile, configs.matrix_precision(x.dtype)), BLOCK=tile.block_m,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        off_correlation = totals.sum() / samples
    return columns.square[0, 0], off_correlation, gram[0]
