"""The kernels: columns' statistics, symmetric matrices in tiles, their product with A, and what follows either.

A is x less its columns' means, times a weight for each column where WEIGHTED; nobody stores it. Every load makes it
from x. Kernels with DOUBLE compute in float64, for what `exact` says, which they read from the device: they are always
launched, and return at once where nothing is to be done. Sums of programs are added in a fixed order, without atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Sizes that change from batch to batch get no code of their own; what vector loads hang on (dim, side, strides) does.
kernel = triton.jit(
    do_not_specialize=["samples", "positions", "views", "rows", "blocks", "depth", "splits", "grams", "tiles", "first"]
)

# ---- A, from x -------------------------------------------------------------------------------------------------------


@triton.jit
def _tf32(a):
    """a [·, ·] rounded to tf32's eleven digits. The matrix units cut instead: every square shrinks by some 7e-4, and of
    T − Δ, a tenth of T, nothing would be right to 1e-2."""
    bits = a.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(a == a, rounded, a)  # a NaN of ones alone would become 0


@triton.jit
def _load_columns(
    x,  # [N, D] of one view and position
    centre,  # [3, D] float32: the mean in two parts, the weight
    weight,  # [D] float64
    n,  # [·] int64
    d,  # [·]
    samples,
    dim,
    row_stride,
    WEIGHTED: tl.constexpr,
    DOUBLE: tl.constexpr,
    ROUND: tl.constexpr,
):
    """[n, d] of A, 0 outside. Less a mean in two parts of float32: in one, columns around 1e4 keep 4 digits."""
    is_column = d < dim
    inside = (n < samples)[:, None] & is_column[None, :]
    a = tl.load(x + (n[:, None] * row_stride + d[None, :]), mask=inside, other=0.0)
    mean = tl.load(centre + d, mask=is_column, other=0.0)[None, :]
    rest = tl.load(centre + dim + d, mask=is_column, other=0.0)[None, :]
    if DOUBLE:
        a = a.to(tl.float64) - mean.to(tl.float64) - rest.to(tl.float64)
        if WEIGHTED:
            a = a * tl.load(weight + d, mask=is_column, other=0.0)[None, :]
    else:
        a = a.to(tl.float32) - mean - rest
        if WEIGHTED:
            a = a * tl.load(centre + 2 * dim + d, mask=is_column, other=0.0)[None, :]
    a = tl.where(inside, a, 0.0)
    if ROUND:
        a = _tf32(a)
    return a


@triton.jit
def _dot(a, b, acc, DOUBLE: tl.constexpr, PRECISION: tl.constexpr):
    if DOUBLE:
        return tl.dot(a, b, acc, input_precision="ieee", out_dtype=tl.float64)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


# ---- columns ---------------------------------------------------------------------------------------------------------


@triton.jit
def _deviations(
    x,  # [N, D]
    n,  # [BLOCK_R] int64
    d,  # [BLOCK_D]
    pivot,  # [1, BLOCK_D] float64
    inside,
    row_stride,
):
    a = tl.load(x + (n[:, None] * row_stride + d[None, :]), mask=inside, other=0.0).to(tl.float64)
    return a, tl.where(inside, a - pivot, 0.0)


@kernel
def sum_columns(
    x,  # [N, E, D]
    y,  # likewise with x's strides, or None
    parts,  # [splits, 5, E, D] float64 out: Σ(x−p), Σ(x−p)², the same of y and q, and Σ(x−y)², or Σ(x−p)(y−q) if CROSS
    samples,
    positions,
    dim,
    row_stride,
    position_stride,
    rows,  # of a split
    CROSS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One pass, about the first sample p (and q): a sample among the others, it is at most √N deviations from the mean,
    so that float64 keeps of Σ(x−p)² − (Σ(x−p))²/N all but N·2^−53. Of a constant column both are 0."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.program_id(1).to(tl.int64)
    e = tl.program_id(2).to(tl.int64)
    is_column = d < dim
    x += e * position_stride
    p = tl.load(x + d, mask=is_column, other=0.0).to(tl.float64)[None, :]
    zero = tl.zeros([BLOCK_R, BLOCK_D], tl.float64)
    x_sum, x_square, y_sum, y_square, both = zero, zero, zero, zero, zero
    if y is not None:
        y += e * position_stride
        q = tl.load(y + d, mask=is_column, other=0.0).to(tl.float64)[None, :]
    for start in range(split * rows, tl.minimum((split + 1) * rows, samples), BLOCK_R):
        n = start + tl.arange(0, BLOCK_R).to(tl.int64)
        inside = (n < samples)[:, None] & is_column[None, :]
        a, u = _deviations(x, n, d, p, inside, row_stride)
        x_sum += u
        x_square += u * u
        if y is not None:
            b, v = _deviations(y, n, d, q, inside, row_stride)
            y_sum += v
            y_square += v * v
            both += u * v if CROSS else (a - b) * (a - b)
    plane = positions.to(tl.int64) * dim
    parts += split * 5 * plane + e * dim
    tl.store(parts + d, tl.sum(x_sum, 0), mask=is_column)
    tl.store(parts + plane + d, tl.sum(x_square, 0), mask=is_column)
    if y is not None:
        tl.store(parts + 2 * plane + d, tl.sum(y_sum, 0), mask=is_column)
        tl.store(parts + 3 * plane + d, tl.sum(y_square, 0), mask=is_column)
        tl.store(parts + 4 * plane + d, tl.sum(both, 0), mask=is_column)


@triton.jit
def _sum_splits(
    parts,  # [splits, 5, E, D] at a sum, position and column
    splits,
    stride,
    is_column,
    BLOCK_D: tl.constexpr,
):
    total = tl.zeros([BLOCK_D], tl.float64)
    for _ in range(0, splits):
        total += tl.load(parts, mask=is_column, other=0.0)
        parts += stride
    return total


@triton.jit
def _finish_view(
    first,  # [N, E, D] at the first sample's columns
    parts,
    centre,  # [3, D] float32 out
    weight,  # [D] float64 out, if CROSS
    square,  # [D] float64 out
    d,
    is_column,
    samples,
    eps,
    splits,
    plane,
    dim,
    CROSS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    pivot = tl.load(first + d, mask=is_column, other=0.0).to(tl.float64)
    total = _sum_splits(parts, splits, 5 * plane, is_column, BLOCK_D)
    squares = _sum_splits(parts + plane, splits, 5 * plane, is_column, BLOCK_D)
    n = samples.to(tl.float64)
    mean = pivot + total / n
    squares = squares - total * total / n
    squares = tl.where(squares < 0, 0.0, squares)
    high = mean.to(tl.float32)
    tl.store(centre + d, high, mask=is_column)
    tl.store(centre + dim + d, (mean - high.to(tl.float64)).to(tl.float32), mask=is_column)
    own = squares
    if CROSS:
        variance = squares / n + eps
        own = tl.where(variance == 0, 0.0, 1.0 / tl.sqrt(variance))
        tl.store(centre + 2 * dim + d, own.to(tl.float32), mask=is_column)
        tl.store(weight + d, own, mask=is_column)
        squares = squares * own * own
    tl.store(square + d, squares, mask=is_column)
    return total, own


@kernel
def finish_columns(
    x,  # [N, E, D]
    y,  # likewise, or None
    parts,  # [splits, 5, E, D] float64, sum_columns'
    centre,  # [V, E, 3, D] float32 out: the mean in two parts and, if CROSS, the weight
    weight,  # [V, E, D] float64 out, if CROSS: 1 / √(v/N + eps), 0 where that is 1/0
    square,  # [V, E, D] float64 out: ΣA², of weighted columns if CROSS
    both,  # [E, D] float64 out: Σ(x − y)², or ΣAB if CROSS
    eps,
    samples,
    positions,
    dim,
    position_stride,
    splits,
    CROSS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    e = tl.program_id(1).to(tl.int64)
    is_column = d < dim
    plane = positions.to(tl.int64) * dim
    parts += e * dim + d
    x_sum, x_weight = _finish_view(
        x + e * position_stride, parts, centre + e * 3 * dim, weight + e * dim, square + e * dim,
        d, is_column, samples, eps, splits, plane, dim, CROSS, BLOCK_D,
    )  # fmt: skip
    if y is not None:
        centre += 3 * plane
        weight += plane
        y_sum, y_weight = _finish_view(
            y + e * position_stride, parts + 2 * plane, centre + e * 3 * dim, weight + e * dim,
            square + plane + e * dim, d, is_column, samples, eps, splits, plane, dim, CROSS, BLOCK_D,
        )  # fmt: skip
        total = _sum_splits(parts + 4 * plane, splits, 5 * plane, is_column, BLOCK_D)
        if CROSS:
            total = (total - x_sum * y_sum / samples.to(tl.float64)) * x_weight * y_weight
        tl.store(both + e * dim + d, total, mask=is_column)


# ---- matrices --------------------------------------------------------------------------------------------------------


@triton.jit
def _tile(t, blocks, TRIANGLE: tl.constexpr):
    """(row, column) of the t-th tile, of those on and above the diagonal if TRIANGLE."""
    if TRIANGLE:
        column = ((tl.sqrt(8.0 * t + 1.0) - 1.0) * 0.5).to(tl.int32)
        column = tl.where(column * (column + 1) // 2 > t, column - 1, column)  # the root is rounded
        column = tl.where((column + 1) * (column + 2) // 2 <= t, column + 1, column)
        return t - column * (column + 1) // 2, column
    else:
        return t // blocks, t % blocks


@triton.jit
def _accumulate(
    x, y, x_centre, y_centre, x_weight, y_weight, i, j, start, stop, samples, dim, row_stride, acc,
    ROWS: tl.constexpr, WEIGHTED: tl.constexpr, DOUBLE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc and what start … stop of the samples (of D, if ROWS) add to the tile at i and j."""
    ROUND: tl.constexpr = PRECISION == "tf32" and not DOUBLE
    for k in range(start, stop, BLOCK_K):
        at = k + tl.arange(0, BLOCK_K)
        if ROWS:
            left = _load_columns(x, x_centre, x_weight, i, at, samples, dim, row_stride, WEIGHTED, DOUBLE, ROUND)
            right = _load_columns(y, y_centre, y_weight, j, at, samples, dim, row_stride, WEIGHTED, DOUBLE, ROUND)
            acc = _dot(left, tl.trans(right), acc, DOUBLE, PRECISION)
        else:
            n = at.to(tl.int64)
            left = _load_columns(x, x_centre, x_weight, n, i, samples, dim, row_stride, WEIGHTED, DOUBLE, ROUND)
            right = _load_columns(y, y_centre, y_weight, n, j, samples, dim, row_stride, WEIGHTED, DOUBLE, ROUND)
            acc = _dot(tl.trans(left), right, acc, DOUBLE, PRECISION)
    return acc


@triton.jit
def _matrix_tile(
    x, y, x_centre, y_centre, x_weight, y_weight, tile_i, tile_j, start, stop, samples, dim, row_stride,
    ROWS: tl.constexpr, WEIGHTED: tl.constexpr, DOUBLE: tl.constexpr, PRECISION: tl.constexpr, CHAIN: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK, BLOCK] of AAᵀ if ROWS, else of AᵀB. Of CHAIN at a time the matrix units' sums are added to the others:
    they cut where arithmetic rounds, which over thousands of samples is a bias of 1e-4 on squares."""
    i = tile_i * BLOCK + tl.arange(0, BLOCK)
    j = tile_j * BLOCK + tl.arange(0, BLOCK)
    if ROWS:
        i = i.to(tl.int64)
        j = j.to(tl.int64)
    acc = tl.zeros([BLOCK, BLOCK], tl.float64 if DOUBLE else tl.float32)
    if CHAIN:
        for link in range(start, stop, CHAIN):
            acc += _accumulate(
                x, y, x_centre, y_centre, x_weight, y_weight, i, j, link, tl.minimum(link + CHAIN, stop),
                samples, dim, row_stride, tl.zeros([BLOCK, BLOCK], tl.float32),
                ROWS, WEIGHTED, DOUBLE, PRECISION, BLOCK_K,
            )  # fmt: skip
        return acc
    else:
        return _accumulate(
            x, y, x_centre, y_centre, x_weight, y_weight, i, j, start, stop, samples, dim, row_stride, acc,
            ROWS, WEIGHTED, DOUBLE, PRECISION, BLOCK_K,
        )  # fmt: skip


@kernel
def multiply_self(
    x,  # [N, E, D]
    y,  # likewise, or None
    centre,  # [V, E, 3, D] float32
    weight,  # [V, E, D] float64, if WEIGHTED and DOUBLE
    exact,  # [G] whether to do anything, if DOUBLE; None: yes
    parts,  # [splits, G, K, K] out, tiles on and above the diagonal alone if TRIANGLE
    samples,
    positions,
    dim,
    side,  # K
    row_stride,
    position_stride,
    blocks,  # tiles on a side
    depth,  # of a split
    COMMON: tl.constexpr,  # one flag in `exact` for all
    ROWS: tl.constexpr,  # AAᵀ of every view and position; else AᵀA, or AᵀB if not TRIANGLE
    TRIANGLE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DOUBLE: tl.constexpr,
    PRECISION: tl.constexpr,
    CHAIN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    z = tl.program_id(2).to(tl.int64)
    if DOUBLE and exact is not None:  # noqa: SIM102  # what is compiled, then what is run
        if tl.load(exact if COMMON else exact + z) == 0:
            return
    plane = positions.to(tl.int64) * dim
    e = z
    if y is not None:
        if TRIANGLE:
            if z >= positions:
                x = y
                e = z - positions
        else:
            y += e * position_stride
    x += e * position_stride
    x_centre = centre + z * 3 * dim
    x_weight = weight + z * dim
    tile_i, tile_j = _tile(tl.program_id(0), blocks, TRIANGLE)
    start = tl.program_id(1) * depth
    stop = tl.minimum(start + depth, dim if ROWS else samples)
    if TRIANGLE:
        tile = _matrix_tile(
            x, x, x_centre, x_centre, x_weight, x_weight, tile_i, tile_j, start, stop, samples, dim, row_stride,
            ROWS, WEIGHTED, DOUBLE, PRECISION, CHAIN, BLOCK, BLOCK_K,
        )  # fmt: skip
    else:
        tile = _matrix_tile(
            x, y, x_centre, x_centre + 3 * plane, x_weight, x_weight + plane, tile_i, tile_j, start, stop, samples,
            dim, row_stride, ROWS, WEIGHTED, DOUBLE, PRECISION, CHAIN, BLOCK, BLOCK_K,
        )  # fmt: skip
    i = tile_i * BLOCK + tl.arange(0, BLOCK)
    j = tile_j * BLOCK + tl.arange(0, BLOCK)
    at = tl.program_id(1).to(tl.int64) * tl.num_programs(2) + z
    parts += at * side * side
    tl.store(
        parts + (i.to(tl.int64)[:, None] * side + j[None, :]), tile, mask=(i < side)[:, None] & (j < side)[None, :]
    )


@triton.jit
def _sum_matrix(
    parts,  # [BLOCK, BLOCK] pointers into the first split's
    inside,
    splits,
    stride,
):
    total = tl.load(parts, mask=inside, other=0.0)
    for _ in range(1, splits):
        parts += stride
        total += tl.load(parts, mask=inside, other=0.0)
    return total


@kernel
def merge_matrices(
    parts,  # [splits, G, K, K], multiply_self's; with one split it may be `gram` itself
    gram,  # [G, K, K] out if KEEP: whole matrices, without their diagonals unless ROWS
    exact,  # [G] whether to do anything, if DOUBLE; None: yes
    totals,  # [G, tiles] float64 out: Σ of squares; [tiles] of ⟨first, second⟩ if PAIR
    side,  # K
    blocks,
    splits,
    grams,  # G
    tiles,
    COMMON: tl.constexpr,
    ROWS: tl.constexpr,
    TRIANGLE: tl.constexpr,
    PAIR: tl.constexpr,  # G is 2 and one program does both
    KEEP: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    z = tl.program_id(1).to(tl.int64)
    if DOUBLE and exact is not None:  # noqa: SIM102  # what is compiled, then what is run
        if tl.load(exact if COMMON else exact + z) == 0:
            return
    tile_i, tile_j = _tile(tl.program_id(0), blocks, TRIANGLE)
    i = tile_i * BLOCK + tl.arange(0, BLOCK)
    j = tile_j * BLOCK + tl.arange(0, BLOCK)
    inside = (i < side)[:, None] & (j < side)[None, :]
    stride = grams.to(tl.int64) * side * side
    at = z * side * side + i.to(tl.int64)[:, None] * side + j[None, :]
    mirrored = z * side * side + j.to(tl.int64)[:, None] * side + i[None, :]
    second = (z + 1) * side * side  # of PAIR, whose z is 0
    value = _sum_matrix(parts + at, inside, splits, stride)
    if not ROWS:
        value = tl.where(i[:, None] == j[None, :], value - value, value)  # 0, but of what is not finite NaN
    other = value
    if PAIR:
        other = _sum_matrix(parts + second + at, inside, splits, stride)
    if KEEP:
        tl.store(gram + at, value, mask=inside)
        if PAIR:
            tl.store(gram + second + at, other, mask=inside)
        if TRIANGLE:  # noqa: SIM102
            if tile_i != tile_j:
                inside_mirrored = (j < side)[:, None] & (i < side)[None, :]
                tl.store(gram + mirrored, tl.trans(value), mask=inside_mirrored)
                if PAIR:
                    tl.store(gram + second + mirrored, tl.trans(other), mask=inside_mirrored)
    total = tl.sum(tl.sum(value.to(tl.float64) * other.to(tl.float64), 1), 0)
    if TRIANGLE:
        total = tl.where(tile_i == tile_j, total, 2 * total)
    tl.store(totals + z * tiles + tl.program_id(0), total)


@triton.jit
def _largest_and_sum(
    square,  # [D] float64
    dim,
    BLOCK: tl.constexpr,
):
    largest = tl.zeros([BLOCK], tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, dim, BLOCK):
        d = start + tl.arange(0, BLOCK)
        s = tl.load(square + d, mask=d < dim, other=0.0)
        largest = tl.maximum(largest, s)
        total += s
    return tl.max(largest, 0), tl.sum(total, 0)


@kernel
def finish_totals(
    totals,  # [G, tiles] float64
    square,  # [V, E, D] float64: ΣA²
    diagonal,  # [G, D] float64: C's
    off,  # [G] float64 out: Σ_{d≠d'} C²
    exact,  # [G] out: whether float64 must redo it; in if DOUBLE
    samples,
    views,
    tiles,
    dim,
    ROWS: tl.constexpr,
    CROSS: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where a column dominates, or little is left of T − Δ, float32's digits of T are not of what is left. Where
    squares leave float32's range products of two of them are nothing or too much."""
    z = tl.program_id(0).to(tl.int64)
    if DOUBLE:  # noqa: SIM102
        if tl.load(exact + z) == 0:
            return
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, tiles, BLOCK):
        t = start + tl.arange(0, BLOCK)
        sums += tl.load(totals + z * tiles + t, mask=t < tiles, other=0.0)
    total = tl.sum(sums, 0)
    value = total
    if ROWS:
        squares = tl.zeros([BLOCK], tl.float64)
        for start in range(0, dim, BLOCK):
            d = start + tl.arange(0, BLOCK)
            c = tl.load(diagonal + z * dim + d, mask=d < dim, other=0.0)
            squares += c * c
        value = total - tl.sum(squares, 0)
        value = tl.where(value < 0, 0.0, value)  # by rounding alone; NaN is not less
    tl.store(off + z, value)
    if not DOUBLE:
        redo = total != total
        if ROWS:
            redo = value < 0.1 * total
            for view in range(0, views if CROSS else 1):
                largest, sum_ = _largest_and_sum(square + (z + view) * dim, dim, BLOCK)
                # See uneven() in csrc/cpu/covariance/columns.h.
                redo = redo | (largest * tl.sqrt(largest) * samples > 6 * sum_ * tl.sqrt(sum_ / dim))
        if not CROSS:
            largest, _ = _largest_and_sum(square + z * dim, dim, BLOCK)
            redo = redo | (largest > 1e20) | ((largest > 0) & (largest < 1e-20))
        tl.store(exact + z, redo.to(tl.uint8))


@kernel
def sum_correlations(
    x,  # [N, D]
    centre,  # [3, D] float32
    totals,  # [tiles] float64 out: Σ_{d≠d'} |C| of weighted columns
    samples,
    dim,
    row_stride,
    blocks,
    PRECISION: tl.constexpr,
    CHAIN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile_i, tile_j = _tile(tl.program_id(0), blocks, True)
    tile = _matrix_tile(
        x, x, centre, centre, centre, centre, tile_i, tile_j, 0, samples, samples, dim, row_stride,
        False, True, False, PRECISION, CHAIN, BLOCK, BLOCK_K,
    )  # fmt: skip
    i = tile_i * BLOCK + tl.arange(0, BLOCK)
    j = tile_j * BLOCK + tl.arange(0, BLOCK)
    tile = tl.where(i[:, None] == j[None, :], tile - tile, tl.abs(tile))
    total = tl.sum(tl.sum(tile.to(tl.float64), 1), 0)
    tl.store(totals + tl.program_id(0), tl.where(tile_i == tile_j, total, 2 * total))


# ---- gradients -------------------------------------------------------------------------------------------------------


@triton.jit
def _load_matrix(
    gram,  # [K, K]
    i,  # [·]
    j,  # [·]
    side,
    ROUND: tl.constexpr,
):
    at = i.to(tl.int64)[:, None] * side + j[None, :]
    tile = tl.load(gram + at, mask=(i < side)[:, None] & (j < side)[None, :], other=0.0)
    if ROUND:
        tile = _tf32(tile)
    return tile


@triton.jit
def _multiply(
    x, centre, weight, gram, i, j, start, stop, samples, dim, row_stride, side, acc,
    ROWS: tl.constexpr, TRANSPOSED: tl.constexpr, WEIGHTED: tl.constexpr, DOUBLE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc and what start … stop add of [i, j] of gram·A if ROWS, else of A·gram or A·gramᵀ."""
    ROUND: tl.constexpr = PRECISION == "tf32" and not DOUBLE
    for k in range(start, stop, BLOCK_K):
        at = k + tl.arange(0, BLOCK_K)
        if ROWS:
            left = _load_matrix(gram, i, at, side, ROUND)
            right = _load_columns(
                x, centre, weight, at.to(tl.int64), j, samples, dim, row_stride, WEIGHTED, DOUBLE, ROUND
            )
        else:
            left = _load_columns(
                x, centre, weight, i.to(tl.int64), at, samples, dim, row_stride, WEIGHTED, DOUBLE, ROUND
            )
            if TRANSPOSED:
                right = tl.trans(_load_matrix(gram, j, at, side, ROUND))
            else:
                right = _load_matrix(gram, at, j, side, ROUND)
        acc = _dot(left, right, acc, DOUBLE, PRECISION)
    return acc


@triton.jit
def _product_tile(
    x, centre, weight, gram, i, j, samples, dim, row_stride, side,
    ROWS: tl.constexpr, TRANSPOSED: tl.constexpr, WEIGHTED: tl.constexpr, DOUBLE: tl.constexpr,
    PRECISION: tl.constexpr, CHAIN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float64 if DOUBLE else tl.float32)
    if CHAIN:
        for link in range(0, side, CHAIN):
            acc += _multiply(
                x, centre, weight, gram, i, j, link, tl.minimum(link + CHAIN, side), samples, dim, row_stride, side,
                tl.zeros([BLOCK_M, BLOCK_N], tl.float32), ROWS, TRANSPOSED, WEIGHTED, DOUBLE, PRECISION, BLOCK_K,
            )  # fmt: skip
        return acc
    else:
        return _multiply(
            x, centre, weight, gram, i, j, 0, side, samples, dim, row_stride, side, acc,
            ROWS, TRANSPOSED, WEIGHTED, DOUBLE, PRECISION, BLOCK_K,
        )  # fmt: skip


@kernel
def auto_gradient(
    grad_square,  # [V, E, D] float64
    grad_off,  # [V, E] float64
    grad_distance,  # [] float64
    x,  # [N, E, D]
    y,  # likewise, or None
    centre,  # [V, E, 3, D] float32
    square,  # [V, E, D] float64
    gram,  # [V, E, K, K], float64 if DOUBLE
    exact,  # [V, E]
    grad_x,  # [N, E, D] out, contiguous
    grad_y,  # likewise
    samples,
    positions,
    dim,
    side,  # K
    row_stride,
    position_stride,
    first,  # view
    ROWS: tl.constexpr,
    DOUBLE: tl.constexpr,
    PRECISION: tl.constexpr,
    CHAIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """4·∂off·A·C_off + 2·∂square·A + 2·∂distance·(x − y)."""
    z = tl.program_id(2).to(tl.int64) + first * positions
    if (tl.load(exact + z) != 0) != DOUBLE:
        return
    e = z
    other = x
    if y is not None:
        other = y
        if z >= positions:
            other = x
            x = y
            grad_x = grad_y
            e = z - positions
    x += e * position_stride
    other += e * position_stride
    centre += z * 3 * dim
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = _product_tile(
        x, centre, square, gram + z * side * side, i, d, samples, dim, row_stride, side,
        ROWS, False, False, DOUBLE, PRECISION, CHAIN, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    n = i.to(tl.int64)
    is_column = d < dim
    inside = (n < samples)[:, None] & is_column[None, :]
    a = _load_columns(x, centre, square, n, d, samples, dim, row_stride, False, DOUBLE, False)
    if ROWS:
        out -= a * tl.load(square + z * dim + d, mask=is_column, other=0.0).to(a.dtype)[None, :]
    out *= (4 * tl.load(grad_off + z)).to(a.dtype)
    out += (2 * tl.load(grad_square + z * dim + d, mask=is_column, other=0.0)).to(a.dtype)[None, :] * a
    if y is not None:
        at = n[:, None] * row_stride + d[None, :]
        difference = tl.load(x + at, mask=inside, other=0.0).to(a.dtype)
        difference -= tl.load(other + at, mask=inside, other=0.0).to(a.dtype)
        out += (2 * tl.load(grad_distance)).to(a.dtype) * difference
    tl.store(grad_x + ((n[:, None] * positions + e) * dim + d[None, :]), out.to(tl.float32), mask=inside)


@kernel
def cross_gradient(
    grad_off,  # [] float64
    x,  # [N, D]
    y,  # likewise, or None
    centre,  # [V, 3, D] float32
    weight,  # [V, D] float64
    diagonal,  # [D] float64
    gram,  # [V, N, N] if ROWS, else [1, D, D]; float64 if DOUBLE
    exact,  # [1]
    grad,  # [V, N, D] float32 out: 2·∂off·B·C_offᵀ, the part of ∂A that the other columns bring
    along,  # [V, row blocks, D] float64 out: Σ over the rows of a block of A∘grad
    samples,
    dim,
    side,
    row_stride,
    first,  # view
    ROWS: tl.constexpr,
    DOUBLE: tl.constexpr,
    PRECISION: tl.constexpr,
    CHAIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Not ∂A itself: what B brings along its own columns, nearly all of which the normalisation takes away again, never
    meets a rounding here. Without y twice that is asked for."""
    if (tl.load(exact) != 0) != DOUBLE:
        return
    z = tl.program_id(2).to(tl.int64) + first
    own = x
    other = x
    own_centre = centre
    own_weight = weight
    other_centre = centre
    other_weight = weight
    if y is not None:
        if z == 0:
            other = y
            other_centre += 3 * dim
            other_weight += dim
        else:
            own = y
            own_centre += 3 * dim
            own_weight += dim
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if ROWS:
        if y is not None:
            gram += (1 - z) * side * side
        out = _product_tile(
            own, own_centre, own_weight, gram, i, d, samples, dim, row_stride, side,
            True, False, True, DOUBLE, PRECISION, CHAIN, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    elif y is None:
        out = _product_tile(
            own, own_centre, own_weight, gram, i, d, samples, dim, row_stride, side,
            False, False, True, DOUBLE, PRECISION, CHAIN, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        out = tl.zeros([BLOCK_M, BLOCK_N], tl.float64 if DOUBLE else tl.float32)
        if z == 0:
            out = _product_tile(
                other, other_centre, other_weight, gram, i, d, samples, dim, row_stride, side,
                False, True, True, DOUBLE, PRECISION, CHAIN, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            out = _product_tile(
                other, other_centre, other_weight, gram, i, d, samples, dim, row_stride, side,
                False, False, True, DOUBLE, PRECISION, CHAIN, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    n = i.to(tl.int64)
    is_column = d < dim
    inside = (n < samples)[:, None] & is_column[None, :]
    if ROWS:
        b = _load_columns(other, other_centre, other_weight, n, d, samples, dim, row_stride, True, DOUBLE, False)
        out -= b * tl.load(diagonal + d, mask=is_column, other=0.0).to(b.dtype)[None, :]
    out *= ((2 if y is not None else 4) * tl.load(grad_off)).to(out.dtype)
    plane = samples.to(tl.int64) * dim
    tl.store(grad + z * plane + (n[:, None] * dim + d[None, :]), out, mask=inside)
    a = _load_columns(own, own_centre, own_weight, n, d, samples, dim, row_stride, True, DOUBLE, False)
    total = tl.sum(a.to(tl.float64) * out.to(tl.float64), 0)
    along += (z * tl.num_programs(0) + tl.program_id(0)) * dim
    tl.store(along + d, total, mask=is_column)


@kernel
def normalise_gradient(
    grad_diagonal,  # [D] float64
    x,  # [N, D]
    y,  # likewise, or None
    centre,  # [V, 3, D] float32
    weight,  # [V, D] float64
    diagonal,  # [D] float64
    grad,  # [V, N, D] float32, cross_gradient's
    along,  # [V, row blocks, D] float64, likewise
    grad_x,  # [N, D] out, contiguous
    grad_y,  # likewise
    samples,
    dim,
    row_stride,
    first,  # view
    blocks,  # row blocks
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """w·(P − A·mean(A∘P) + ∂diagonal·(B − A·diagonal/N)), P what cross_gradient left. B's columns have mean 0, and so
    has B·C_offᵀ: there is none to subtract. In float64: the last difference is all but nothing where B is like A."""
    z = tl.program_id(2).to(tl.int64) + first
    own = x
    other = x
    own_centre = centre
    own_weight = weight
    other_centre = centre
    other_weight = weight
    if y is not None:
        if z == 0:
            other = y
            other_centre += 3 * dim
            other_weight += dim
        else:
            own = y
            own_centre += 3 * dim
            own_weight += dim
            grad_x = grad_y
    n = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_column = d < dim
    inside = (n < samples)[:, None] & is_column[None, :]
    mean = tl.zeros([BLOCK_D], tl.float64)
    at = along + z * blocks * dim + d
    for _ in range(0, blocks):
        mean += tl.load(at, mask=is_column, other=0.0)
        at += dim
    mean = mean / samples
    share = tl.load(diagonal + d, mask=is_column, other=0.0) / samples
    incoming = tl.load(grad_diagonal + d, mask=is_column, other=0.0)
    a = _load_columns(own, own_centre, own_weight, n, d, samples, dim, row_stride, True, True, False)
    plane = samples.to(tl.int64) * dim
    out = tl.load(grad + z * plane + (n[:, None] * dim + d[None, :]), mask=inside, other=0.0).to(tl.float64)
    out -= a * mean[None, :]
    if y is not None:
        b = _load_columns(other, other_centre, other_weight, n, d, samples, dim, row_stride, True, True, False)
        out += incoming[None, :] * (b - a * share[None, :])
    else:
        out += (2 * incoming * (1 - share))[None, :] * a
    out *= tl.load(own_weight + d, mask=is_column, other=0.0)[None, :]
    tl.store(grad_x + (n[:, None] * dim + d[None, :]), out.to(tl.float32), mask=inside)
