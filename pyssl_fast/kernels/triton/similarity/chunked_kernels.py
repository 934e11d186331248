"""What the chunked form does with a chunk of S: one kernel for every reduction over it. `chunked.py` launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from pyssl_fast.kernels.reference.similarity import SAME
from pyssl_fast.kernels.triton.similarity.pairs import key, kinds, log1p, ordered, within

_SAME = tl.constexpr(SAME)
# Terms of their own kind, for statistics: the sum of t, or of ones, instead of that of exp(p·t).
PLAIN, NUMBER = 4, 8
_PLAIN = tl.constexpr(PLAIN)
_NUMBER = tl.constexpr(NUMBER)
NO_KEY = -(1 << 63)  # below every key
_NO_KEY = tl.constexpr(NO_KEY)

# Sizes that change from batch to batch get no code of their own.
SIZES = (
    "first_row", "first_column", "height", "width", "samples", "rows", "columns", "length", "parts", "count", "plain",
    "halved", "whole",
)  # fmt: skip
kernel = triton.jit(do_not_specialize=SIZES)


# ---- tiles: what the kernels share ----------------------------------------------------------------------------------


@triton.jit
def _tile(height, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(m [BLOCK_M], n [BLOCK_N], [BLOCK_M, BLOCK_N] whether inside) of the program's tile in its chunk."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    return m, n, (m < height)[:, None] & (n < width)[None, :]


@triton.jit
def _at(
    s,  # [height, width], rows `stride` apart
    stride,
    m,
    n,
):
    """Pointers to a tile; 64-bit once per row."""
    return (s + m.to(tl.int64) * stride)[:, None] + n[None, :]


@triton.jit
def _radii(row_radius, column_radius, i, j, m, n, height, width):
    """[BLOCK_M, BLOCK_N] what makes ⟨u, v⟩ of products of rows that were normalised to a power of two only."""
    r = tl.load(row_radius + i, mask=m < height, other=0.0)
    return r[:, None] * tl.load(column_radius + j, mask=n < width, other=0.0)[None, :]


@triton.jit
def _kept(t, negatives, same, limit, TERM: tl.constexpr):
    """Which pairs of a tile belong to a term. limit: [BLOCK_M, 1], [1, BLOCK_N] or None."""
    keep = negatives
    if _SAME & TERM:
        keep = same
    elif limit is not None:
        keep = within(negatives, t, limit)
    return keep


# ---- contrast, bank_contrast ----------------------------------------------------------------------------------------


@triton.jit
def _reduce(t, keep, power, TERM: tl.constexpr, AXIS: tl.constexpr):
    """(largest p·t, Σ exp(p·t − largest)) along an axis; −inf and 0 where nothing is kept."""
    x = tl.where(keep, power * t, float("-inf"))
    largest = tl.max(x, AXIS)  # swallows a NaN, the sum does not
    if _PLAIN & TERM:
        total = tl.sum(tl.where(keep, t, 0.0), AXIS)
    elif _NUMBER & TERM:
        total = tl.sum(keep.to(tl.float32), AXIS)
    else:
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        total = tl.sum(tl.exp(x - tl.expand_dims(shift, AXIS)), AXIS)
    return largest, total


@kernel
def sum_terms(
    s,  # [height, width] of the chunk at (first_row, first_column), rows `stride` apart
    scale,  # [] float32
    row_radius,  # [M] float32 or None
    column_radius,  # [N]
    row_ids,  # [M] int64 or None
    column_ids,  # [N]
    row_limit,  # [M] float32 or None
    column_limit,  # [N] float32 or None
    row_powers,  # p of each of ROW_TERMS
    column_powers,
    row_parts,  # [T, 2, column tiles, height] out: largest and sum over a tile's columns
    column_parts,  # [T, 2, row tiles, width] out
    first_row,
    first_column,
    height,
    width,
    stride,
    samples,
    ROW_TERMS: tl.constexpr,
    COLUMN_TERMS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m, n, inside = _tile(height, width, BLOCK_M, BLOCK_N)
    i = first_row + m
    j = first_column + n
    x = tl.load(_at(s, stride, m, n), mask=inside, other=0.0)
    if row_radius is not None:
        x *= _radii(row_radius, column_radius, i, j, m, n, height, width)
    t = x * tl.load(scale)
    negatives, same = kinds(i, j, inside, m < height, n < width, row_ids, column_ids, samples, EXCLUDE)
    limit_i = None
    if row_limit is not None:
        limit_i = tl.load(row_limit + i, mask=m < height, other=0.0)[:, None]
    limit_j = None
    if column_limit is not None:
        limit_j = tl.load(column_limit + j, mask=n < width, other=0.0)[None, :]
    for a in tl.static_range(len(ROW_TERMS)):
        keep = _kept(t, negatives, same, limit_i, ROW_TERMS[a])
        largest, total = _reduce(t, keep, row_powers[a], ROW_TERMS[a], 1)
        tiles = tl.num_programs(1)
        at = row_parts + (2 * a * tiles + tl.program_id(1)).to(tl.int64) * height + m
        tl.store(at, largest, mask=m < height)
        tl.store(at + tiles.to(tl.int64) * height, total, mask=m < height)
    for a in tl.static_range(len(COLUMN_TERMS)):
        keep = _kept(t, negatives, same, limit_j, COLUMN_TERMS[a])
        largest, total = _reduce(t, keep, column_powers[a], COLUMN_TERMS[a], 0)
        tiles = tl.num_programs(0)
        at = column_parts + (2 * a * tiles + tl.program_id(0)).to(tl.int64) * width + n
        tl.store(at, largest, mask=n < width)
        tl.store(at + tiles.to(tl.int64) * width, total, mask=n < width)


@kernel
def merge(
    of_tiles,  # [T, 2, parts, length]
    largest,  # [T, whole] from the first of them on: in and out
    total,  # [T, whole] float64, likewise
    length,
    parts,
    whole,
    plain,  # bit t: term t's sums are not of exponentials
    BLOCK: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Adds a chunk's parts to the running largest value and the sum of exponentials relative to it."""
    term = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    p = tl.arange(0, BLOCK_PARTS)
    of_tiles += (2 * term * parts).to(tl.int64) * length
    largest += term.to(tl.int64) * whole + i
    total += term.to(tl.int64) * whole + i
    before = tl.load(largest, mask=i < length, other=0.0)
    now = before
    for start in range(0, parts, BLOCK_PARTS):
        inside = (start + p < parts)[:, None] & (i < length)[None, :]
        at = (of_tiles + (start + p).to(tl.int64) * length)[:, None] + i[None, :]
        now = tl.maximum(now, tl.max(tl.load(at, mask=inside, other=float("-inf")), 0))
    shift = tl.where(now == float("-inf"), 0.0, now)
    is_plain = (plain >> term) & 1 != 0
    acc = tl.load(total, mask=i < length, other=0.0) * tl.where(is_plain, 1.0, tl.exp(before - shift)).to(tl.float64)
    for start in range(0, parts, BLOCK_PARTS):
        inside = (start + p < parts)[:, None] & (i < length)[None, :]
        at = (of_tiles + (start + p).to(tl.int64) * length)[:, None] + i[None, :]
        factor = tl.exp(tl.load(at, mask=inside, other=float("-inf")) - shift[None, :])
        part = tl.load(at + parts.to(tl.int64) * length, mask=inside, other=0.0)
        acc += tl.sum((tl.where(is_plain, 1.0, factor) * part).to(tl.float64), 0)
    tl.store(largest, now, mask=i < length)
    tl.store(total, acc, mask=i < length)


@kernel
def weigh(
    s,  # [height, width] of the chunk, rows `stride` apart
    w,  # out, laid out as s and of the type of U and V; may be s
    scale,  # [] float32
    row_radius,  # [M] float32 or None
    column_radius,  # [N]
    row_ids,  # [M] int64 or None
    column_ids,  # [N]
    row_limit,  # [M] float32 or None
    column_limit,  # [N] float32 or None
    row_powers,
    column_powers,
    row_shift,  # [T, rows]
    row_weight,  # [T, rows]
    column_shift,  # [T, columns]
    column_weight,  # [T, columns]
    scale_parts,  # [row tiles, column tiles] out: Σ w·⟨u, v⟩; or None
    lift,  # a power of two for half precision: weights are stored times it
    halved,  # the chunk's first columns that stand on the other side of the diagonal too
    first_row,
    first_column,
    height,
    width,
    stride,
    rows,
    columns,
    samples,
    ROW_TERMS: tl.constexpr,
    COLUMN_TERMS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """w = Σ over terms of weight·exp(p·t − shift), with both radii where there are some: they stand beside U and V."""
    m, n, inside = _tile(height, width, BLOCK_M, BLOCK_N)
    i = first_row + m
    j = first_column + n
    x = tl.load(_at(s, stride, m, n), mask=inside, other=0.0)
    if row_radius is not None:
        radii = _radii(row_radius, column_radius, i, j, m, n, height, width)
        x *= radii
    t = x * tl.load(scale)
    negatives, same = kinds(i, j, inside, m < height, n < width, row_ids, column_ids, samples, EXCLUDE)
    limit_i = None
    if row_limit is not None:
        limit_i = tl.load(row_limit + i, mask=m < height, other=0.0)[:, None]
    limit_j = None
    if column_limit is not None:
        limit_j = tl.load(column_limit + j, mask=n < width, other=0.0)[None, :]
    weights = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for a in tl.static_range(len(ROW_TERMS)):
        keep = _kept(t, negatives, same, limit_i, ROW_TERMS[a])
        at = a * rows.to(tl.int64) + i
        shift = tl.load(row_shift + at, mask=m < height, other=0.0)
        weight = tl.load(row_weight + at, mask=m < height, other=0.0)
        weights += tl.where(keep, tl.exp(row_powers[a] * t - shift[:, None]) * weight[:, None], 0.0)
    for a in tl.static_range(len(COLUMN_TERMS)):
        keep = _kept(t, negatives, same, limit_j, COLUMN_TERMS[a])
        at = a * columns.to(tl.int64) + j
        shift = tl.load(column_shift + at, mask=n < width, other=0.0)
        weight = tl.load(column_weight + at, mask=n < width, other=0.0)
        weights += tl.where(keep, tl.exp(column_powers[a] * t - shift[None, :]) * weight[None, :], 0.0)
    if scale_parts is not None:
        part = tl.sum(tl.sum(weights * x * tl.where(n < halved, 0.5, 1.0)[None, :], 1), 0)
        tl.store(scale_parts + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), part)
    weights *= lift
    if row_radius is not None:
        weights *= radii
    tl.store(_at(w, stride, m, n), weights, mask=inside)


# ---- sigmoid_contrast -----------------------------------------------------------------------------------------------


@kernel
def sigmoid(
    s,  # [height, width] of the chunk, rows `stride` apart
    w,  # out, laid out as s and of the type of U and V; may be s; None: no gradient
    scale,  # [] float32
    bias,  # [] float32
    row_ids,  # [M] int64 or None
    column_ids,  # [N]
    row_weight,  # [M]
    positive_weight,  # [M]
    loss_parts,  # [column tiles, height] out
    sums,  # [2, row tiles, column tiles] out: Σ w·s, Σ w
    lift,
    first_row,
    first_column,
    height,
    width,
    stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m, n, inside = _tile(height, width, BLOCK_M, BLOCK_N)
    i = first_row + m
    j = first_column + n
    x = tl.load(_at(s, stride, m, n), mask=inside, other=0.0)
    t = x * tl.load(scale) + tl.load(bias)
    if row_ids is None:
        positive = i[:, None] == j[None, :]
    else:
        row_id = tl.load(row_ids + i, mask=m < height, other=0)
        positive = row_id[:, None] == tl.load(column_ids + j, mask=n < width, other=0)[None, :]
    away = tl.where(positive, -t, t)  # the loss is log(1 + exp(away))
    e = tl.exp(-tl.abs(away))
    weight = tl.where(positive, tl.load(positive_weight + i, mask=m < height, other=0.0)[:, None], 1.0)
    loss = tl.sum(tl.where(inside, weight * (tl.maximum(away, 0.0) + log1p(e)), 0.0), 1)
    tl.store(loss_parts + tl.program_id(1).to(tl.int64) * height + m, loss, mask=m < height)
    if w is not None:
        rate = tl.where(away >= 0, 1.0, e) / (1.0 + e)
        weight *= tl.load(row_weight + i, mask=m < height, other=0.0)[:, None]
        weights = tl.where(inside, weight * tl.where(positive, -rate, rate), 0.0)
        sums += tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(sums, tl.sum(tl.sum(weights * x, 1), 0))
        tl.store(sums + tl.num_programs(0) * tl.num_programs(1), tl.sum(tl.sum(weights, 1), 0))
        tl.store(_at(w, stride, m, n), weights * lift, mask=inside)


# ---- hardest, neighbours --------------------------------------------------------------------------------------------


@kernel
def extremes(
    s,  # [height, width] of the chunk, rows `stride` apart
    ids,  # [M] int64
    offset,  # [M] float32
    row_parts,  # [2, column tiles, height] int64 out: keys of the largest over other ids, of the smallest over the own
    column_parts,  # [2, row tiles, width] int64 out
    first_row,
    first_column,
    height,
    width,
    stride,
    samples,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """S is symmetric: what stands left of the diagonal is seen as columns."""
    m, n, inside = _tile(height, width, BLOCK_M, BLOCK_N)
    i = first_row + m
    j = first_column + n
    x = tl.load(_at(s, stride, m, n), mask=inside, other=0.0)
    negatives, same = kinds(i, j, inside, m < height, n < width, ids, ids, samples, True)
    value = x + tl.load(offset + j, mask=n < width, other=0.0)[None, :]
    tiles = tl.num_programs(1)
    at = row_parts + tl.program_id(1).to(tl.int64) * height + m
    tl.store(at, tl.max(tl.where(negatives, key(ordered(value), j[None, :]), _NO_KEY), 1), mask=m < height)
    at += tiles.to(tl.int64) * height
    tl.store(at, tl.max(tl.where(same, key(ordered(-value), j[None, :]), _NO_KEY), 1), mask=m < height)
    value = x + tl.load(offset + i, mask=m < height, other=0.0)[:, None]
    tiles = tl.num_programs(0)
    at = column_parts + tl.program_id(0).to(tl.int64) * width + n
    tl.store(at, tl.max(tl.where(negatives, key(ordered(value), i[:, None]), _NO_KEY), 0), mask=n < width)
    at += tiles.to(tl.int64) * width
    tl.store(at, tl.max(tl.where(same, key(ordered(-value), i[:, None]), _NO_KEY), 0), mask=n < width)


@triton.jit
def _eligible(i, j, inside, row_ids, column_ids, SYMMETRIC: tl.constexpr):
    """[BLOCK] which columns j row i may have as neighbours."""
    if SYMMETRIC:
        inside = inside & (j != i)
    if row_ids is not None:
        inside = inside & (tl.load(column_ids + j, mask=inside, other=0) != tl.load(row_ids + i))
    return inside


@kernel
def insert(
    s,  # [height, width] of the chunk, rows `stride` apart
    row_ids,  # [M] int64 or None
    column_ids,  # [N]
    best,  # [M, count] int64: the keys of each row's best columns so far, in any order, all different: in and out
    first_row,
    first_column,
    width,
    stride,
    count,
    SYMMETRIC: tl.constexpr,
    COUNT: tl.constexpr,  # count, up to a power of two
    BLOCK: tl.constexpr,
):
    """A row per program: a column that beats the least of the list takes its place. Few do, but for the first ones."""
    m = tl.program_id(0).to(tl.int64)
    i = first_row + m
    s += m * stride
    c = tl.arange(0, COUNT)
    best += i * count + c
    held = tl.load(best, mask=c < count, other=0x7FFFFFFFFFFFFFFF)
    least = tl.min(held, 0)
    for start in range(0, width, BLOCK):
        n = start + tl.arange(0, BLOCK)
        j = first_column + n
        inside = _eligible(i, j, n < width, row_ids, column_ids, SYMMETRIC)
        order = ordered(tl.load(s + n, mask=n < width, other=0.0))
        keys = tl.where(inside, key(order, j), _NO_KEY)
        top = tl.max(keys, 0)
        while top > least:
            held = tl.where(held == least, top, held)
            least = tl.min(held, 0)
            keys = tl.where(keys == top, _NO_KEY, keys)
            top = tl.max(keys, 0)
    tl.store(best, held, mask=c < count)


@kernel
def pack(
    s,  # [height, width] of the chunk, rows `stride` apart
    row_ids,  # [M] int64 or None
    column_ids,  # [N]
    keys,  # [height, width] int64 out, laid out as s
    first_row,
    first_column,
    width,
    stride,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every similarity's key, for torch.topk to choose from."""
    m = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    j = first_column + n
    inside = _eligible(first_row + m, j, n < width, row_ids, column_ids, SYMMETRIC)
    order = ordered(tl.load(s + m * stride + n, mask=n < width, other=0.0))
    tl.store(keys + m * stride + n, tl.where(inside, key(order, j), _NO_KEY), mask=n < width)


# ---- triplets -------------------------------------------------------------------------------------------------------


@kernel
def distances(
    s,  # [height, width], rows `stride` apart: in ⟨q_i, q_j⟩, out d
    squares,  # [M] ‖q‖²
    first_row,
    height,
    width,
    stride,
    EUCLIDEAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m, n, inside = _tile(height, width, BLOCK_M, BLOCK_N)
    at = _at(s, stride, m, n)
    x = tl.load(at, mask=inside, other=0.0)
    if EUCLIDEAN:
        square = tl.load(squares + first_row + m, mask=m < height, other=0.0)[:, None]
        square += tl.load(squares + n, mask=n < width, other=0.0)[None, :]
        square -= 2.0 * x
        x = tl.sqrt(tl.where(square < 0, 0.0, square))  # not tl.maximum, which swallows a NaN
    else:
        x = 1.0 - x
    tl.store(at, x, mask=inside)


@kernel
def row_triplets(
    d,  # [height, columns] distances, rows `stride` apart
    ids,  # [M] int64
    margin,
    loss,  # [M] float64 out, without gradient
    number,  # [M] float64 out, without gradient
    w,  # [height, columns] laid out as d: in 0, out the pairs' weights; None: no gradient
    grad_loss,  # [M] float32, with gradient
    first_row,
    columns,
    stride,
    SEMI_HARD: tl.constexpr,
    EUCLIDEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row per program: for each of its positives, one after the other, all negatives.

    The weights are counts, exact: of a positive its triplets, of a negative minus its own; then times ∂loss, and for
    Euclidean distances over d.
    """
    m = tl.program_id(0).to(tl.int64)
    i = first_row + m
    d += m * stride
    if w is not None:
        w += m * stride
    own = tl.load(ids + i)
    b = tl.arange(0, BLOCK)
    total = tl.zeros([], tl.float64)
    found = tl.zeros([], tl.int64)
    for start in range(0, columns, BLOCK):
        j = start + b
        positive = (tl.load(ids + j, mask=j < columns, other=~own) == own) & (j != i)
        p = tl.min(tl.where(positive, j, columns), 0)
        while p < columns:
            near = tl.load(d + p)
            acc = tl.zeros([BLOCK], tl.float32)
            hits = tl.zeros([BLOCK], tl.int32)
            for at in range(0, columns, BLOCK):
                n = at + b
                negative = tl.load(ids + n, mask=n < columns, other=own) != own
                far = tl.load(d + n, mask=n < columns, other=0.0)
                term = near - far + margin
                counted = negative & (term > 0)
                if SEMI_HARD:
                    counted = counted & (far > near)
                if w is None:
                    acc += tl.where(counted | (negative & (term != term)), term, 0.0)  # a NaN travels
                else:
                    tl.store(w + n, tl.load(w + n, mask=negative, other=0.0) - counted.to(tl.float32), mask=negative)
                hits += counted.to(tl.int32)
            pairs = tl.sum(hits, 0)
            found += pairs
            if w is None:
                total += tl.sum(acc, 0).to(tl.float64)
            else:
                tl.store(w + p, pairs.to(tl.float32))
                tl.debug_barrier()  # what one thread wrote, another may read next
            p = tl.min(tl.where(positive & (j > p), j, columns), 0)
    if w is None:
        tl.store(loss + i, total)
        tl.store(number + i, found.to(tl.float64))
    else:
        factor = tl.load(grad_loss + i)
        for start in range(0, columns, BLOCK):
            j = start + b
            weight = tl.load(w + j, mask=j < columns, other=0.0) * factor
            if EUCLIDEAN:
                distance = tl.load(d + j, mask=j < columns, other=1.0)
                weight = tl.where(distance > 0, weight / distance, 0.0)
            tl.store(w + j, weight, mask=j < columns)
