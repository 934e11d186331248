"""The streaming kernels: every program owns a block of rows and walks over all columns, S in tiles that never leave it.

First what any of them does with a tile, then one kernel for every reduction. `streamed.py` launches them.
"""

# Tuples grow by a term at a time here.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from pyssl_fast.kernels.triton.similarity.pairs import LOWEST, key, kinds, log1p, ordered, others, within
from pyssl_fast.kernels.triton.similarity.rows import LOG2E, bounded, kernel

# ---- tiles: what every kernel does with one -------------------------------------------------------------------------


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _similarities(
    left,  # [BLOCK_M, depth] if ONE_CHUNK, else pointers to its first BLOCK_K columns
    right_at,  # [BLOCK_N, BLOCK_K] pointers
    depth,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ONE_CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """([BLOCK_M, BLOCK_N] of S, the columns' block if ONE_CHUNK)."""
    s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if ONE_CHUNK:
        right = tl.load(right_at)
        return _dot(left, tl.trans(right), s, PRECISION, UPCAST), right
    else:
        for start in range(0, depth, BLOCK_K):
            s = _dot(tl.load(left + start), tl.trans(tl.load(right_at + start)), s, PRECISION, UPCAST)
        return s, s


@triton.jit
def _load_keys(
    k,  # [columns, dim], any strides, any dtype
    column_start,
    start,
    n,  # [BLOCK_N]
    d,  # [BLOCK_K]
    columns,
    dim,
    row_stride,
    column_stride,
    EVEN: tl.constexpr,  # no column beyond dim
):
    offset = n.to(tl.int64)[:, None] * row_stride + (start + d).to(tl.int64)[None, :] * column_stride
    corner = column_start.to(tl.int64) * row_stride
    mask = (column_start + n < columns)[:, None]
    if not EVEN:
        mask = mask & (start + d < dim)[None, :]
    return tl.load(k + corner + offset, mask=mask, other=0.0)


@triton.jit
def _key_similarities(
    left, k, column_start, columns, dim, depth, row_stride, column_stride,
    EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ONE_CHUNK: tl.constexpr,
    ELEMENT: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """_similarities with keys as they lie."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_K)
    s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if ONE_CHUNK:
        right = _load_keys(k, column_start, 0, n, d, columns, dim, row_stride, column_stride, EVEN).to(ELEMENT)
        return _dot(left, tl.trans(right), s, PRECISION, UPCAST), right
    else:
        for start in range(0, depth, BLOCK_K):
            right = _load_keys(k, column_start, start, n, d, columns, dim, row_stride, column_stride, EVEN)
            s = _dot(tl.load(left + start), tl.trans(right.to(ELEMENT)), s, PRECISION, UPCAST)
        return s, s


@triton.jit
def _exponentials(
    s,  # [BLOCK_M, BLOCK_N]
    c,  # [BLOCK_M, 1]
    b,  # [], [BLOCK_M, 1] or [1, BLOCK_N]
):
    """2^(c·s − b), the product not rounded."""
    zero = tl.zeros(s.shape, tl.float32)
    return tl.exp2(tl.fma(s, zero + c, zero - b))


@triton.jit
def _is_edge(
    row_start, column_start, columns, samples,
    PAIRED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Whether the tile can hold a pair that is left out: of one sample, or padding. Few do; the others save the compare
    and the select, 2 of some 6 instructions per element beside the exponential."""
    edge = column_start + BLOCK_N > columns
    if PAIRED:
        offset = row_start % samples - column_start % samples
        offset = tl.where(offset < 0, offset + samples, offset)  # i − j mod samples, at the tile's corner
        edge = edge | (offset < BLOCK_N) | (offset + BLOCK_M > samples)
    return edge


@triton.jit
def _kinds(
    i, j, row_ids, column_ids, rows, columns, samples,
    PAIRED: tl.constexpr,
):  # fmt: skip
    """(negatives, same) of the tile."""
    is_column = j < columns
    return kinds(i, j, is_column[None, :], i < rows, is_column, row_ids, column_ids, samples, PAIRED)


@triton.jit
def _online(
    total,  # [BLOCK_M]
    shift,  # [BLOCK_M] base 2
    s,  # [BLOCK_M, BLOCK_N]
    c,  # [BLOCK_M]
    keep,  # [BLOCK_M, BLOCK_N]
):
    """(exponentials of the kept pairs, total, shift, what came before times this): a running maximum's step.

    The maximum swallows a NaN, the sum of exponentials does not.
    """
    larger = tl.maximum(shift, tl.max(tl.where(keep, s * c[:, None], float("-inf")), 1))
    b = tl.where(larger == float("-inf"), 0.0, larger)  # no pair yet
    e = tl.where(keep, _exponentials(s, c[:, None], b[:, None]), 0.0)
    rescale = tl.exp2(shift - b)
    return e, total * rescale + tl.sum(e, 1), larger, rescale


@triton.jit
def _watch(
    found,  # (largest, total, count), [BLOCK_M] each
    t,  # [BLOCK_M, BLOCK_N]
    keep,  # [BLOCK_M, BLOCK_N]
):
    largest = tl.maximum(found[0], tl.max(tl.where(keep, t, float("-inf")), 1))
    total = found[1] + tl.sum(tl.where(keep, t, 0.0), 1)
    return largest, total, found[2] + tl.sum(keep.to(tl.float32), 1)


@triton.jit
def _no_statistics(BLOCK_M: tl.constexpr):
    nothing = tl.zeros([BLOCK_M], tl.float32)
    return nothing + float("-inf"), nothing, nothing


@triton.jit
def _store_statistics(
    statistics,  # [3, splits, padded]
    found,
    at,  # [BLOCK_M]
    plane,  # splits·padded
):
    for n in tl.static_range(3):
        tl.store(statistics + n * plane + at, found[n])


# ---- contrast -------------------------------------------------------------------------------------------------------


@triton.jit
def _sum_tiles(
    y, radius, x, x_radius, scale, row_ids, column_ids, limit, powers, split_shift, split_sum, statistics,
    rows, columns, padded, samples, depth, row_start, first, last,
    BOUNDED: tl.constexpr, TERMS: tl.constexpr, PAIRED: tl.constexpr, PLAIN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ONE_CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    i = row_start + m
    scale_i = tl.zeros([BLOCK_M], tl.float32) + scale
    c = tl.zeros([BLOCK_M], tl.float32) + scale * LOG2E
    if radius is not None:
        radius_i = tl.load(radius + i)
        scale_i *= radius_i
        c *= radius_i
    if limit is not None:
        limit_i = tl.load(limit + i, mask=i < rows, other=0.0)
    # 64-bit only in the tile's corner, 32-bit inside: half the address registers.
    left = y + row_start.to(tl.int64) * depth + (m[:, None] * depth + k[None, :])
    right_offset = n[:, None] * depth + k[None, :]
    if ONE_CHUNK:
        left = tl.load(left)
    totals = ()
    shifts = ()
    for term in tl.static_range(len(TERMS)):
        totals += (tl.zeros([BLOCK_M], tl.float32),)
        if BOUNDED:
            shifts += (tl.zeros([BLOCK_M], tl.float32) + tl.abs(scale * LOG2E * powers[term]),)
        else:
            shifts += (tl.full([BLOCK_M], float("-inf"), tl.float32),)
    found = _no_statistics(BLOCK_M)
    for tile in range(first, last):
        column_start = tile * BLOCK_N
        j = column_start + n
        s, _ = _similarities(
            left, x + column_start.to(tl.int64) * depth + right_offset, depth,
            BLOCK_M, BLOCK_N, BLOCK_K, ONE_CHUNK, PRECISION, UPCAST,
        )  # fmt: skip
        if x_radius is not None:
            s = s * tl.load(x_radius + j)[None, :]
        new_totals = ()
        new_shifts = ()
        if PLAIN and BOUNDED:
            edge = _is_edge(row_start, column_start, columns, samples, PAIRED, BLOCK_M, BLOCK_N)
            for term in tl.static_range(len(TERMS)):
                power = powers[term]
                e = _exponentials(s, (c * power)[:, None], tl.abs(scale * LOG2E * power))
                if edge:
                    e = tl.where(others(i, j, (j < columns)[None, :], samples, PAIRED), e, 0.0)
                new_totals += (totals[term] + tl.sum(e, 1),)
            new_shifts = shifts
        else:
            negatives, same = _kinds(i, j, row_ids, column_ids, rows, columns, samples, PAIRED)
            if limit is not None:
                negatives = within(negatives, s * scale_i[:, None], limit_i[:, None])
            if statistics is not None:
                found = _watch(found, s * scale_i[:, None], negatives)
            for term in tl.static_range(len(TERMS)):
                power = powers[term]
                keep = same if TERMS[term] else negatives
                if BOUNDED:
                    e = _exponentials(s, (c * power)[:, None], tl.abs(scale * LOG2E * power))
                    new_totals += (totals[term] + tl.sum(tl.where(keep, e, 0.0), 1),)
                    new_shifts = shifts
                else:
                    _, total, shift, _ = _online(totals[term], shifts[term], s, c * power, keep)
                    new_totals += (total,)
                    new_shifts += (shift,)
        totals = new_totals
        shifts = new_shifts
    split = tl.program_id(1).to(tl.int64)
    plane = tl.num_programs(1).to(tl.int64) * padded
    at = split * padded + i
    for term in tl.static_range(len(TERMS)):
        tl.store(split_shift + term * plane + at, shifts[term])
        tl.store(split_sum + term * plane + at, totals[term])
    if statistics is not None:
        _store_statistics(statistics, found, at, plane)


@kernel
def stream_sums(
    y,  # [padded, depth] the rows
    radius,  # [padded], or None: 1
    x,  # [·, depth] the columns
    x_radius,  # [·] or None
    scale_ptr,  # []
    row_ids,  # [rows] int64 or None
    column_ids,  # [columns] or None
    limit,  # [rows] or None
    powers,  # of every term
    split_shift,  # [terms, splits, padded] out, base 2
    split_sum,  # [terms, splits, padded] out
    statistics,  # [3, splits, padded] out: largest t, Σ t, number; or None
    steepest,  # the largest power
    rows,
    columns,
    padded,
    samples,
    depth,
    tiles,  # column tiles per split
    TERMS: tl.constexpr,  # for each 0 (negatives) or 1 (same)
    PAIRED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    PLAIN: tl.constexpr,  # negatives alone, without ids, limits and statistics
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ONE_CHUNK: tl.constexpr,  # depth == BLOCK_K: the row block stays on the chip
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Program (I, split): over the split's column tiles, for every term each row's sum of 2^(power·c·s − shift)."""
    scale = tl.load(scale_ptr).to(tl.float32)
    row_start = tl.program_id(0) * BLOCK_M
    first = tl.program_id(1) * tiles
    last = tl.minimum(first + tiles, tl.cdiv(columns, BLOCK_N))
    # The host never reads scale, so the choice falls here.
    one_shift = bounded(scale, steepest) & NORMALIZED
    if NORMALIZED:  # noqa: SIM102, known when it is compiled
        if one_shift:
            _sum_tiles(
                y, radius, x, x_radius, scale, row_ids, column_ids, limit, powers, split_shift, split_sum, statistics,
                rows, columns, padded, samples, depth, row_start, first, last,
                True, TERMS, PAIRED, PLAIN, BLOCK_M, BLOCK_N, BLOCK_K, ONE_CHUNK, PRECISION, UPCAST,
            )  # fmt: skip
    if not one_shift:
        _sum_tiles(
            y, radius, x, x_radius, scale, row_ids, column_ids, limit, powers, split_shift, split_sum, statistics,
            rows, columns, padded, samples, depth, row_start, first, last,
            False, TERMS, PAIRED, PLAIN, BLOCK_M, BLOCK_N, BLOCK_K, ONE_CHUNK, PRECISION, UPCAST,
        )  # fmt: skip


@triton.jit
def _term_weights(
    s,  # [BLOCK_M, BLOCK_N]
    c,  # [BLOCK_M, 1] of this power
    bound,  # [] the shift if BOUNDED
    shift,  # [BLOCK_M, 1] or [1, BLOCK_N] the shift otherwise
    weight,  # like shift
    keep,  # [BLOCK_M, BLOCK_N]
    BOUNDED: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """What a term gives every pair of a tile, in one direction."""
    # BOUNDED, one shift for all rows: one exponential serves both directions.
    w = _exponentials(s, c, bound if BOUNDED else shift) * weight
    if not PLAIN:
        w = tl.where(keep, w, 0.0)
    return w


@triton.jit
def _gradient_tiles(
    y, radius, x, x_radius, scale, row_ids, column_ids, own_limit, other_limit, own_powers, other_powers,
    own_shift, own_weight, other_shift, other_weight, du,
    rows, columns, own_padded, other_padded, samples, depth, row_start, out_start, first, last,
    BOUNDED: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, ALIKE: tl.constexpr, PAIRED: tl.constexpr,
    PLAIN: tl.constexpr, LIFT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr, ONE_CHUNK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    o = out_start + tl.arange(0, BLOCK_OUT)
    i = row_start + m
    c = tl.zeros([BLOCK_M], tl.float32) + scale * LOG2E
    scale_i = tl.zeros([BLOCK_M], tl.float32) + scale
    if radius is not None:
        radius_i = tl.load(radius + i)
        c *= radius_i
        scale_i *= radius_i
    if own_limit is not None:
        own_limit_i = tl.load(own_limit + i, mask=i < rows, other=0.0)
    left = y + row_start.to(tl.int64) * depth + (m[:, None] * depth + k[None, :])
    right_offset = n[:, None] * depth + k[None, :]
    out_offset = n[:, None] * depth + o[None, :]
    own_b = ()
    own_w = ()
    for term in tl.static_range(len(OWN)):
        own_b += (tl.load(own_shift + term * own_padded.to(tl.int64) + i) - LIFT,)
        own_w += (tl.load(own_weight + term * own_padded.to(tl.int64) + i),)
    acc = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    if ONE_CHUNK:
        left = tl.load(left)
    for tile in range(first, last):
        column_start = tile * BLOCK_N
        j = column_start + n
        right_at = x + column_start.to(tl.int64) * depth
        s, right = _similarities(
            left, right_at + right_offset, depth, BLOCK_M, BLOCK_N, BLOCK_K, ONE_CHUNK, PRECISION, UPCAST
        )
        if not ONE_CHUNK:
            right = tl.load(right_at + out_offset)
        # w = A·radius_j, as the product that follows is with y.
        if x_radius is not None:
            radius_j = tl.load(x_radius + j)
            s = s * radius_j[None, :]
        keep = i
        same = i
        t = s
        if not PLAIN:
            keep, same = _kinds(i, j, row_ids, column_ids, rows, columns, samples, PAIRED)
            t = s * scale_i[:, None]
        w = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for term in tl.static_range(len(OWN)):
            power = own_powers[term]
            kept = same if OWN[term] else keep
            if own_limit is not None and not OWN[term]:
                kept = within(keep, t, own_limit_i[:, None])
            w += _term_weights(
                s, (c * power)[:, None], tl.abs(scale * LOG2E * power) - LIFT, own_b[term][:, None],
                own_w[term][:, None], kept, BOUNDED, PLAIN,
            )  # fmt: skip
        if x_radius is not None:
            w = w * radius_j[None, :]
        for term in tl.static_range(len(OTHER)):
            power = own_powers[term] if ALIKE else other_powers[term]
            kept = same if OTHER[term] else keep
            if other_limit is not None and not OTHER[term]:
                kept = within(keep, t, tl.load(other_limit + j, mask=j < columns, other=0.0)[None, :])
            weight_j = tl.load(other_weight + term * other_padded.to(tl.int64) + j)
            if x_radius is not None:
                weight_j = weight_j * radius_j
            b_j = tl.load(other_shift + term * other_padded.to(tl.int64) + j) - LIFT
            w += _term_weights(
                s, (c * power)[:, None], tl.abs(scale * LOG2E * power) - LIFT, b_j[None, :], weight_j[None, :], kept,
                BOUNDED, PLAIN,
            )  # fmt: skip
        if PLAIN:  # noqa: SIM102, known when it is compiled
            if _is_edge(row_start, column_start, columns, samples, PAIRED, BLOCK_M, BLOCK_N):
                w = tl.where(others(i, j, (j < columns)[None, :], samples, PAIRED), w, 0.0)
        acc = _dot(w.to(y.dtype.element_ty), right, acc, PRECISION, UPCAST)
    tl.store(du + row_start.to(tl.int64) * depth + (m[:, None] * depth + o[None, :]), acc)


@kernel
def stream_gradient(
    y,  # [own_padded, depth] the rows that gradients are for
    radius,  # [own_padded], or None: 1
    x,  # [other_padded, depth] the other side
    x_radius,  # [other_padded] or None
    scale_ptr,  # []
    row_ids,  # [rows] int64 or None
    column_ids,  # [columns] or None
    own_limit,  # [rows] or None
    other_limit,  # [columns] or None
    own_powers,  # of every term of the rows
    other_powers,  # of every term of the columns
    own_shift,  # [own terms, own_padded]
    own_weight,  # [own terms, own_padded]
    other_shift,  # [other terms, other_padded]
    other_weight,  # [other terms, other_padded]
    du,  # [splits, own_padded, depth] out: Σ_j A_ij x_j · 2^LIFT / bound
    steepest,  # the largest power
    rows,
    columns,
    own_padded,
    other_padded,
    samples,
    depth,
    tiles,  # column tiles per split
    OWN: tl.constexpr,  # terms of the rows: for each 0 (negatives) or 1 (same)
    OTHER: tl.constexpr,  # terms of the columns
    ALIKE: tl.constexpr,  # both sides have the same terms and powers
    PAIRED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    PLAIN: tl.constexpr,  # negatives alone, without ids and limits
    LIFT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    ONE_CHUNK: tl.constexpr,  # depth == BLOCK_K == BLOCK_OUT: one load of a column block serves both products
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Program (I, split, out): the split's share of dU[I, out] = Σ_j A_ij x_j, A_ij the sum over the rows' terms of
    2^(power·c·s_ij − shift_i)·weight_i and over the columns' of 2^(power·c·s_ij − shift_j)·weight_j.

    Where the rows are compared with each other A is symmetric, so their own gradient and the one they get as columns
    come together. Weights are over their bound: batches that are well trained have weights far below float32's, and
    well below half precision's, smallest number.
    """
    scale = tl.load(scale_ptr).to(tl.float32)
    row_start = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    out_start = tl.program_id(2) * BLOCK_OUT
    first = split * tiles
    last = tl.minimum(first + tiles, tl.cdiv(columns, BLOCK_N))
    du += split.to(tl.int64) * own_padded * depth
    one_shift = bounded(scale, steepest) & NORMALIZED
    if NORMALIZED:  # noqa: SIM102, known when it is compiled
        if one_shift:
            _gradient_tiles(
                y, radius, x, x_radius, scale, row_ids, column_ids, own_limit, other_limit, own_powers, other_powers,
                own_shift, own_weight, other_shift, other_weight, du,
                rows, columns, own_padded, other_padded, samples, depth, row_start, out_start, first, last,
                True, OWN, OTHER, ALIKE, PAIRED, PLAIN, LIFT,
                BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_OUT, ONE_CHUNK, PRECISION, UPCAST,
            )  # fmt: skip
    if not one_shift:
        _gradient_tiles(
            y, radius, x, x_radius, scale, row_ids, column_ids, own_limit, other_limit, own_powers, other_powers,
            own_shift, own_weight, other_shift, other_weight, du,
            rows, columns, own_padded, other_padded, samples, depth, row_start, out_start, first, last,
            False, OWN, OTHER, ALIKE, PAIRED, PLAIN, LIFT,
            BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_OUT, ONE_CHUNK, PRECISION, UPCAST,
        )  # fmt: skip


# ---- bank_contrast --------------------------------------------------------------------------------------------------


@kernel
def stream_bank(
    y,  # [padded, depth] the queries
    keys,  # [columns, dim] any strides, any dtype
    scale_ptr,  # []
    row_ids,  # [rows] int64 or None
    column_ids,  # [columns] or None
    limit,  # [rows] or None
    split_shift,  # [splits, padded] out, base 2
    split_sum,  # [splits, padded] out
    split_key,  # [splits, padded, depth] out: Σ 2^(power·c·s − shift)·k
    statistics,  # [3, splits, padded] out, or None
    power,
    rows,
    columns,
    padded,
    dim,
    depth,
    row_stride,
    column_stride,
    tiles,  # column tiles per split
    TERM: tl.constexpr,  # 0 (negatives) or 1 (same)
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    ONE_CHUNK: tl.constexpr,  # depth == BLOCK_K == BLOCK_OUT
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Program (I, split, out): the split's share of every query's softmax over the keys and of its mean key."""
    scale = tl.load(scale_ptr).to(tl.float32)
    row_start = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    out_start = tl.program_id(2) * BLOCK_OUT
    first = split * tiles
    last = tl.minimum(first + tiles, tl.cdiv(columns, BLOCK_N))
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    o = tl.arange(0, BLOCK_OUT)
    i = row_start + m
    c = tl.zeros([BLOCK_M], tl.float32) + scale * LOG2E * power
    left = y + row_start.to(tl.int64) * depth + (m[:, None] * depth + tl.arange(0, BLOCK_K)[None, :])
    if ONE_CHUNK:
        left = tl.load(left)
    if limit is not None:
        limit_i = tl.load(limit + i, mask=i < rows, other=0.0)
    total = tl.zeros([BLOCK_M], tl.float32)
    shift = tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    found = _no_statistics(BLOCK_M)
    for tile in range(first, last):
        column_start = tile * BLOCK_N
        j = column_start + n
        s, right = _key_similarities(
            left, keys, column_start, columns, dim, depth, row_stride, column_stride,
            EVEN, BLOCK_M, BLOCK_N, BLOCK_K, ONE_CHUNK, y.dtype.element_ty, PRECISION, UPCAST,
        )  # fmt: skip
        if not ONE_CHUNK:
            right = _load_keys(keys, column_start, out_start, n, o, columns, dim, row_stride, column_stride, EVEN)
            right = right.to(y.dtype.element_ty)
        negatives, same = _kinds(i, j, row_ids, column_ids, rows, columns, 1, False)
        if limit is not None:
            negatives = within(negatives, s * scale, limit_i[:, None])
        if statistics is not None:
            found = _watch(found, s * scale, negatives)
        e, total, shift, rescale = _online(total, shift, s, c, same if TERM else negatives)
        acc = _dot(e.to(y.dtype.element_ty), right, acc * rescale[:, None], PRECISION, UPCAST)
    at = split.to(tl.int64) * padded + i
    if tl.program_id(2) == 0:
        tl.store(split_shift + at, shift)
        tl.store(split_sum + at, total)
        if statistics is not None:
            _store_statistics(statistics, found, at, tl.num_programs(1).to(tl.int64) * padded)
    tl.store(split_key + at[:, None] * depth + (out_start + o)[None, :], acc)


# ---- sigmoid_contrast -----------------------------------------------------------------------------------------------


@kernel
def stream_sigmoid(
    y,  # [own_padded, depth] the rows that are summed over
    x,  # [other_padded, depth] the other side
    scale_ptr,  # []
    bias_ptr,  # []
    row_ids,  # [rows] int64 or None: pairs (i, i) are positives
    column_ids,  # [columns] or None
    row_weight,  # over its bound; of y's rows, or of x's if SWAPPED
    positive_weight,  # of the same rows
    sums,  # [3, splits, own_padded] out: Σ loss, Σ w, Σ w·s, without row_weight; None if SWAPPED
    du,  # [splits, own_padded, depth] out: Σ_j row_weight·w_ij x_j · 2^LIFT; None if not asked for
    rows,
    columns,
    own_padded,
    depth,
    tiles,  # column tiles per split
    SWAPPED: tl.constexpr,
    LIFT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    ONE_CHUNK: tl.constexpr,  # depth == BLOCK_K == BLOCK_OUT
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Program (I, split, out): the split's share of every row's binary cross-entropies, and of their gradient."""
    scale = tl.load(scale_ptr).to(tl.float32)
    bias = tl.load(bias_ptr).to(tl.float32)
    row_start = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    out_start = tl.program_id(2) * BLOCK_OUT
    first = split * tiles
    last = tl.minimum(first + tiles, tl.cdiv(columns, BLOCK_N))
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    o = out_start + tl.arange(0, BLOCK_OUT)
    i = row_start + m
    left = y + row_start.to(tl.int64) * depth + (m[:, None] * depth + k[None, :])
    right_offset = n[:, None] * depth + k[None, :]
    if ONE_CHUNK:
        left = tl.load(left)
    if not SWAPPED:
        extra = tl.load(positive_weight + i, mask=i < rows, other=0.0)[:, None]
        outer = tl.load(row_weight + i, mask=i < rows, other=0.0)[:, None] * 2.0**LIFT
    loss = tl.zeros([BLOCK_M], tl.float32)
    pull = tl.zeros([BLOCK_M], tl.float32)
    inner = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    for tile in range(first, last):
        column_start = tile * BLOCK_N
        j = column_start + n
        right_at = x + column_start.to(tl.int64) * depth
        s, right = _similarities(
            left, right_at + right_offset, depth, BLOCK_M, BLOCK_N, BLOCK_K, ONE_CHUNK, PRECISION, UPCAST
        )
        if SWAPPED:
            extra = tl.load(positive_weight + j, mask=j < columns, other=0.0)[None, :]
            outer = tl.load(row_weight + j, mask=j < columns, other=0.0)[None, :] * 2.0**LIFT
        if row_ids is None:
            positive = i[:, None] == j[None, :]
        else:
            id_i = tl.load(row_ids + i, mask=i < rows, other=0)
            id_j = tl.load(column_ids + j, mask=j < columns, other=0)
            positive = id_i[:, None] == id_j[None, :]
        t = s * scale + bias
        t = tl.where(positive, -t, t)
        e = tl.exp2(-tl.abs(t) * LOG2E)
        factor = tl.where(positive, extra, 1.0)
        factor = tl.where((j < columns)[None, :], factor, 0.0)
        # σ(t), the sign of ∂t and the weight; of a NaN a NaN.
        w = tl.where(t >= 0, 1.0, e) / (1.0 + e) * factor
        w = tl.where(positive, -w, w)
        if not SWAPPED:
            loss += tl.sum((tl.maximum(t, 0.0) + log1p(e)) * factor, 1)
            pull += tl.sum(w, 1)
            inner += tl.sum(w * s, 1)
        if du is not None:
            if not ONE_CHUNK:
                right = tl.load(right_at + (n[:, None] * depth + o[None, :]))
            acc = _dot((w * outer).to(y.dtype.element_ty), right, acc, PRECISION, UPCAST)
    at = split.to(tl.int64) * own_padded + i
    if not SWAPPED:  # noqa: SIM102
        if tl.program_id(2) == 0:
            plane = tl.num_programs(1).to(tl.int64) * own_padded
            tl.store(sums + at, loss)
            tl.store(sums + plane + at, pull)
            tl.store(sums + 2 * plane + at, inner)
    if du is not None:
        tl.store(du + at[:, None] * depth + o[None, :], acc)


# ---- neighbours -----------------------------------------------------------------------------------------------------


@kernel
def stream_neighbours(
    y,  # [padded, depth] the queries
    keys,  # [columns, dim] any strides, any dtype
    row_ids,  # [rows] int64 or None
    column_ids,  # [columns] or None
    best,  # [splits, padded, BEST] int64 out: keys, in no order; lowest where there are fewer
    rows,
    columns,
    padded,
    samples,
    dim,
    depth,
    row_stride,
    column_stride,
    tiles,  # column tiles per split
    PAIRED: tl.constexpr,
    EVEN: tl.constexpr,
    BEST: tl.constexpr,  # how many are kept
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Program (I, split): the split's nearest keys of every query.

    A tile's largest go into the list one after the other, as long as any row's is above the list's smallest: after the
    first tiles hardly ever (BEST·log(columns) times in all, for keys in random order).
    """
    row_start = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    first = split * tiles
    last = tl.minimum(first + tiles, tl.cdiv(columns, BLOCK_N))
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    place = tl.arange(0, BEST)
    i = row_start + m
    left = y + row_start.to(tl.int64) * depth + (m[:, None] * depth + tl.arange(0, BLOCK_K)[None, :])
    if ONE_CHUNK:
        left = tl.load(left)
    lowest = tl.full([BLOCK_M, BEST], LOWEST, tl.int64) << 32
    found = lowest
    for tile in range(first, last):
        column_start = tile * BLOCK_N
        j = column_start + n
        s, _ = _key_similarities(
            left, keys, column_start, columns, dim, depth, row_stride, column_stride,
            EVEN, BLOCK_M, BLOCK_N, BLOCK_K, ONE_CHUNK, y.dtype.element_ty, PRECISION, UPCAST,
        )  # fmt: skip
        negatives, _ = _kinds(i, j, row_ids, column_ids, rows, columns, samples, PAIRED)
        s = tl.where(negatives & (s != float("-inf")), ordered(s), LOWEST)
        top, at = tl.max(s, 1, return_indices=True)
        candidate = key(top, column_start + at)
        take = (candidate > tl.min(found, 1)) & (top > LOWEST)
        while tl.max(take.to(tl.int32), 0) > 0:
            smallest = tl.argmin(found, 1)
            found = tl.where((place[None, :] == smallest[:, None]) & take[:, None], candidate[:, None], found)
            s = tl.where(n[None, :] == at[:, None], LOWEST, s)
            top, at = tl.max(s, 1, return_indices=True)
            candidate = key(top, column_start + at)
            take = (candidate > tl.min(found, 1)) & (top > LOWEST)
    out = (split.to(tl.int64) * padded + i)[:, None] * BEST + place[None, :]
    tl.store(best + out, found)
