"""Similarity family on GPUs: reductions over S = U Uᵀ, in tiles that never leave the chip.

How it is built. A row kernel copies z, normalised and padded with zeros to whole tiles, so that the inner loops load
without masks. A streaming kernel owns a block of rows and walks over all column blocks. Row kernels then treat what is
only O(M·D·V): the positives, by direct dot products in float32, and the gradient of the normalisation.

Numbers, for M rows of D columns (a GEMM is 2·M²·D operations):

    forward   1 GEMM,     M² exponentials
    backward  2 GEMMs,    M² exponentials (2·M² with a running maximum), if D fits one output block; beyond that, S is
              formed again for each further block of output columns
    bytes     forward about 5·b·M·D, backward about (8·b + 8·P)·M·D, b bytes per element of z and P partial gradients;
              the streaming kernels' re-reads come from the L2 cache
    extra     forward b·M·D, backward (b + 4·P)·M·D bytes, P = 1 from 256 row blocks on, P·M < (M + 256·BLOCK_M) below;
              nothing of size M²

Predicted time of forward + backward, 6·M²·D operations (×3 for tf32x3) at the dense matrix rate, or 2·M² exponentials
at 16 per clock and multiprocessor where that is more (e). A floor, in ms; **predicted, not measured**:

    M × D            float32 "highest"       float32 "high"         bf16, fp16
                     A100   H100   B200      A100   H100   B200     A100   H100   B200
    8,192 × 128      0.99   0.31   0.14      0.33   0.10   0.05     0.17   0.05   0.03 e
    65,536 × 128     63.4   20.0   9.0       21.1   6.7    3.0      10.6   3.3    2.0 e

    with 156 / 495 / 1,100 TFLOP/s for tf32, 312 / 989 / 2,250 for bf16, and 2.4 / 3.7 / 4.4 · 10¹² exponentials/s.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyssl_fast.kernels.triton import configs
from pyssl_fast.kernels.triton.configs import Row, Tile

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NORM_FLOOR = tl.constexpr(1e-12)  # torch.nn.functional.normalize's eps
BOUND = tl.constexpr(80.0)  # exp(−80) is still a normal float32

# Exponents are in base 2: exp(scale·s − shift) = 2^(c·s − b) with c = scale·log2(e), b = shift·log2(e). Every kernel
# derives c and b by the same two multiplications, so that forward, backward, positives and negatives agree to the bit:
# a rounding of c then only means a scale that differs by half an ulp.


# Arguments that are integers. Sizes that change from batch to batch get no code of their own: one binary per tile, the
# one whose registers were looked at.
INTEGERS = (
    "rows", "padded", "samples", "dim", "depth", "row_stride", "column_stride", "tiles", "splits", "views", "count",
)  # fmt: skip
_kernel = triton.jit(do_not_specialize=["rows", "samples", "tiles", "splits", "views", "count"])


# ---- rows: what is O(M·D) -------------------------------------------------------------------------------------------


@triton.jit
def _load_rows(
    z,  # [rows, dim], any strides
    i,  # [BLOCK_R] int64
    d,  # [BLOCK_D]
    rows,
    dim,
    row_stride,
    column_stride,
):
    offset = i[:, None] * row_stride + d[None, :].to(tl.int64) * column_stride
    return tl.load(z + offset, mask=(i < rows)[:, None] & (d < dim)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _power_of_two(exponent):
    """2^exponent from the bits, −126 ≤ exponent ≤ 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@_kernel
def _normalise_rows(
    z,  # [rows, dim], any strides
    y,  # [padded, depth] out: u, or z·2^−e with 2^e the power of two below the row's max|z|; 0 outside [rows, dim]
    radius,  # [padded] out: u = y·radius
    shrink,  # [2, padded] out: 1 / max(‖z‖, 1e-12) as two factors, either of which is a normal float32
    floored,  # [padded] out: 1 where the norm is below its floor
    rows,
    dim,
    depth,
    row_stride,
    column_stride,
    padded,
    UNIT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """u = z / max(‖z‖, 1e-12), held as y·radius; no square over- or underflows.

    UNIT, for float32: y is u and radius 1. Otherwise y is exact: with u rounded to bf16, losses are wrong by 5e-3 at a
    temperature of 0.1, with y by 2e-7. In float32 the products with radius would cost digits at large scales instead:
    gradients 4e-6 wrong at a scale of 200, against 6e-7.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    peak = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, dim, BLOCK_D):
        tile = _load_rows(z, i, start + tl.arange(0, BLOCK_D), rows, dim, row_stride, column_stride)
        peak = tl.maximum(peak, tl.max(tl.abs(tile), 1))  # swallows a NaN; the squares do not
    # Up to 2^126, so that 2^−e is no subnormal, and down to 2^−100, far below the floor.
    e = ((peak.to(tl.int32, bitcast=True) >> 23) & 255) - 127
    e = tl.minimum(tl.maximum(e, -100), 126)
    down = _power_of_two(-e)
    squares = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, depth, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        tile = _load_rows(z, i, d, rows, dim, row_stride, column_stride) * down[:, None]
        squares += tl.sum(tile * tile, 1)
        if not UNIT:
            tl.store(y + (i[:, None] * depth + d[None, :]), tile, mask=(d < depth)[None, :])
    length = tl.sqrt(squares)
    below = length * _power_of_two(e) < NORM_FLOOR
    length = tl.where(below, NORM_FLOOR * down, length)
    if UNIT:
        for start in range(0, depth, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            tile = _load_rows(z, i, d, rows, dim, row_stride, column_stride) * down[:, None] / length[:, None]
            tl.store(y + (i[:, None] * depth + d[None, :]), tile, mask=(d < depth)[None, :])
    tl.store(radius + i, tl.full([BLOCK_R], 1.0, tl.float32) if UNIT else 1.0 / length)
    tl.store(shrink + i, 1.0 / length)
    tl.store(shrink + padded + i, down)
    tl.store(floored + i, below.to(tl.float32))


@triton.jit
def _load_units(
    y,  # [padded, depth]
    radius,  # [padded]
    i,  # [BLOCK_R] int64
    d,  # [BLOCK_D]
    depth,
):
    """[BLOCK_R, BLOCK_D] of u."""
    tile = tl.load(y + (i[:, None] * depth + d[None, :]), mask=(d < depth)[None, :], other=0.0).to(tl.float32)
    return tile * tl.load(radius + i)[:, None]


@_kernel
def _positive_similarities(
    y,  # [padded, depth]
    radius,  # [padded]
    positives,  # [views-1, rows] out: s of row i and row i + (v + 1)·samples
    rows,
    samples,
    depth,
    views,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    for v in range(0, views - 1):
        partner = (i + (v + 1) * samples) % rows
        s = tl.zeros([BLOCK_R], tl.float32)
        for start in range(0, depth, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            s += tl.sum(_load_units(y, radius, i, d, depth) * _load_units(y, radius, partner, d, depth), 1)
        tl.store(positives + i, s, mask=i < rows)
        positives += rows


@triton.jit
def _log1p(x):
    """log(1 + x) for x ≥ 0, to about 2 ulp: the hardware's logarithm is only good in absolute terms around 1."""
    t = x / (2.0 + x)  # log(1 + x) = 2·atanh(t); t ≤ 1/3 where this is used, so eight terms leave 1e-9
    q = t * t
    series = 1 / 15.0
    series = series * q + 1 / 13.0
    series = series * q + 1 / 11.0
    series = series * q + 1 / 9.0
    series = series * q + 1 / 7.0
    series = series * q + 1 / 5.0
    series = series * q + 1 / 3.0
    series = series * q + 1.0
    return tl.where(x < 1.0, 2.0 * t * series, tl.log(1.0 + x))


@_kernel
def _finish_sums(
    split_shift,  # [splits, padded] in units of scale·s; −inf where a split met no negative
    split_sum,  # [splits, padded] Σ over the split's negatives of exp(scale·s − split_shift)
    positives,  # [views-1, rows]
    scale_ptr,  # []
    nll,  # [rows] out
    shift,  # [rows] out
    negative_sum,  # [rows] out
    rows,
    padded,
    splits,
    views,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = i < rows
    scale = tl.load(scale_ptr).to(tl.float32)
    c = scale * LOG2E
    share = 1.0 / (views - 1)

    # 1. One shift for all splits and positives.
    mean = tl.zeros([BLOCK], tl.float32)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    at = positives + i
    for _ in range(0, views - 1):
        s = tl.load(at, mask=real, other=0.0)
        at += rows
        mean += s
        largest = tl.maximum(largest, scale * s)
    mean = mean * share
    at = split_shift + i
    for _ in range(0, splits):
        largest = tl.maximum(largest, tl.load(at, mask=real, other=0.0))
        at += padded
    largest = tl.where(2 * tl.abs(scale) <= BOUND, tl.abs(scale), largest)
    b = largest * LOG2E

    # 2. The negatives, split after split: a fixed order.
    negatives = tl.zeros([BLOCK], tl.float32)
    shift_at = split_shift + i
    sum_at = split_sum + i
    for _ in range(0, splits):
        part_b = tl.load(shift_at, mask=real, other=0.0) * LOG2E
        negatives += tl.load(sum_at, mask=real, other=0.0) * tl.exp2(part_b - b)
        shift_at += padded
        sum_at += padded

    # 3. nll = log(total) + b' − c·mean, as log1p(x) with x = Σ_p 2^(c·(s_p − mean)) − 1 + negatives·2^(b − c·mean):
    #    nothing cancels, and two views give log1p(negatives / E_p). Where x would leave float32, the plain form.
    above = b - c * mean
    x = -tl.full([BLOCK], 1.0, tl.float32)
    total = negatives
    at = positives + i
    for _ in range(0, views - 1):
        s = tl.load(at, mask=real, other=0.0)
        at += rows
        x += tl.exp2(c * (s - mean))
        total += tl.exp2(c * s - b)
    x += negatives * tl.exp2(tl.minimum(above, 126.0))
    value = tl.where((above < 126.0) & (x < 8.5e37), _log1p(x), tl.log(total) + above * LN2)

    tl.store(nll + i, value, mask=real)
    tl.store(shift + i, largest, mask=real)
    tl.store(negative_sum + i, negatives, mask=real)


@_kernel
def _row_weights(
    grad_nll,  # [rows]
    positives,  # [views-1, rows]
    scale_ptr,  # []
    shift,  # [rows]
    negative_sum,  # [rows]
    weight,  # [padded] out: grad / total, 0 for padding
    mean_positive,  # [padded] out: mean over the positives of exp(scale·s − shift)
    bounds,  # [blocks] out: max over the block of |grad|·negative_sum / total, no weight of a pair is above twice that
    rows,
    padded,
    views,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = i < rows
    c = tl.load(scale_ptr).to(tl.float32) * LOG2E
    b = tl.load(shift + i, mask=real, other=0.0) * LOG2E
    negatives = tl.load(negative_sum + i, mask=real, other=0.0)
    grad = tl.load(grad_nll + i, mask=real, other=0.0).to(tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    at = positives + i
    for _ in range(0, views - 1):
        s = tl.load(at, mask=real, other=0.0)
        at += rows
        mass += tl.exp2(tl.fma(s, tl.zeros([BLOCK], tl.float32) + c, -b))
    total = mass + negatives
    inside = i < padded
    tl.store(weight + i, tl.where(real, grad / total, 0.0), mask=inside)
    tl.store(mean_positive + i, mass * (1.0 / (views - 1)), mask=inside)
    tl.store(bounds + tl.program_id(0), tl.max(tl.where(real, tl.abs(grad) * (negatives / total), 0.0), 0))


@_kernel
def _reduce(
    parts,  # [count]
    out,  # []
    count,
    LARGEST: tl.constexpr,  # the maximum, else the sum
    BLOCK_REDUCE: tl.constexpr,
):
    """One program, one order: the second stage of every reduction to a scalar."""
    acc = tl.zeros([BLOCK_REDUCE], tl.float32)
    for start in range(0, count, BLOCK_REDUCE):
        at = start + tl.arange(0, BLOCK_REDUCE)
        part = tl.load(parts + at, mask=at < count, other=0.0)
        acc = tl.maximum(acc, part) if LARGEST else acc + part
    tl.store(out, tl.max(acc, 0) if LARGEST else tl.sum(acc, 0))


@triton.jit
def _unit_gradient(
    y, radius, du, positives, weight, mean_positive, negative_sum, shift,
    c, factor, i, d, rows, padded, depth, splits, samples, views,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of u, without the factor scale, in columns d: the streamed negatives and the positives."""
    real = i < rows
    share = 1.0 / (views - 1)
    gradient = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    at = du + (i[:, None] * depth + d[None, :])
    for _ in range(0, splits):
        gradient += tl.load(at, mask=(d < depth)[None, :], other=0.0)
        at += padded.to(tl.int64) * depth
    gradient = gradient * factor
    b_i = tl.load(shift + i, mask=real, other=0.0) * LOG2E
    share_i = tl.load(negative_sum + i, mask=real, other=0.0) * share
    mean_i = tl.load(mean_positive + i)
    weight_i = tl.load(weight + i)
    s_at = positives + i
    for v in range(0, views - 1):
        # A pair's weight is grad_i·(P_ip − 1/(V−1)) + grad_p·(P_pi − 1/(V−1)). With P_ip = E_p / total the bracket is
        # ((E_p − mean E) − negative_sum/(V−1)) / total: for two views the first difference is exactly 0.
        partner = (i + (v + 1) * samples) % rows
        s = tl.load(s_at, mask=real, other=0.0)
        s_at += rows
        b_p = tl.load(shift + partner) * LOG2E
        share_p = tl.load(negative_sum + partner) * share
        mean_p = tl.load(mean_positive + partner)
        cs = tl.zeros([BLOCK_R], tl.float32) + c
        pull = weight_i * ((tl.exp2(tl.fma(s, cs, -b_i)) - mean_i) - share_i)
        pull += tl.load(weight + partner) * ((tl.exp2(tl.fma(s, cs, -b_p)) - mean_p) - share_p)
        gradient += pull[:, None] * _load_units(y, radius, partner, d, depth)
    return gradient


@_kernel
def _finish_gradient(
    y,  # [padded, depth]
    radius,  # [padded]
    shrink,  # [2, padded]
    floored,  # [padded]
    du,  # [splits, padded, depth]
    positives,  # [views-1, rows]
    weight,  # [padded]
    mean_positive,  # [padded]
    negative_sum,  # [rows]
    shift,  # [rows]
    bound,  # []
    scale_ptr,  # []
    grad_z,  # [rows, dim] out, contiguous
    grad_scale_parts,  # [blocks] out
    rows,
    padded,
    dim,
    depth,
    splits,
    samples,
    views,
    LIFT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adds the positives, and carries the gradient from u to z: (dU − u⟨u, dU⟩) / ‖z‖."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    real = i < rows
    scale = tl.load(scale_ptr).to(tl.float32)
    c = scale * LOG2E
    largest = tl.load(bound)
    factor = tl.where(largest > 0, tl.maximum(largest, 1e-37), 1.0) * 2.0 ** (-LIFT)
    inner = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gradient = _unit_gradient(
            y, radius, du, positives, weight, mean_positive, negative_sum, shift, c, factor, i, d,
            rows, padded, depth, splits, samples, views, BLOCK_R, BLOCK_D,
        )  # fmt: skip
        inner += tl.sum(gradient * _load_units(y, radius, i, d, depth), 1)
    # Each pair is seen from both of its rows.
    tl.store(grad_scale_parts + tl.program_id(0), 0.5 * tl.sum(tl.where(real, inner, 0.0), 0))
    # Below the floor u is z / 1e-12: no projection.
    inner = tl.where(tl.load(floored + i) != 0, 0.0, inner)
    shrink_i = scale * tl.load(shrink + i)
    again_i = tl.load(shrink + padded + i)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gradient = _unit_gradient(
            y, radius, du, positives, weight, mean_positive, negative_sum, shift, c, factor, i, d,
            rows, padded, depth, splits, samples, views, BLOCK_R, BLOCK_D,
        )  # fmt: skip
        gradient -= _load_units(y, radius, i, d, depth) * inner[:, None]
        gradient = gradient * shrink_i[:, None] * again_i[:, None]
        tl.store(grad_z + i[:, None] * dim + d[None, :], gradient, mask=real[:, None] & (d < dim)[None, :])


# ---- tiles: what is O(M²·D) -----------------------------------------------------------------------------------------


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


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
def _may_exclude(row_start, column_start, rows, samples, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether the tile can hold a pair of one sample, or padding. Few do; the others save the compare and the select,
    2 of some 6 instructions per element beside the exponential."""
    offset = row_start % samples - column_start % samples
    offset = tl.where(offset < 0, offset + samples, offset)  # i − j mod samples, at the tile's corner
    return (offset < BLOCK_N) | (offset + BLOCK_M > samples) | (column_start + BLOCK_N > rows)


@triton.jit
def _excluded(
    i,  # [BLOCK_M]
    j,  # [BLOCK_N]
    rows,
    samples,
):
    """[BLOCK_M, BLOCK_N] the diagonal, the positives and the padding."""
    return ((i % samples)[:, None] == (j % samples)[None, :]) | (j >= rows)[None, :]


@triton.jit
def _sum_tiles(
    y, radius, scale, split_shift, split_sum, rows, samples, depth, row_start, first, last,
    BOUNDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ONE_CHUNK: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    i = row_start + m
    scale_i = tl.zeros([BLOCK_M], tl.float32) + scale
    c = tl.zeros([BLOCK_M], tl.float32) + scale * LOG2E
    if not UNIT:
        radius_i = tl.load(radius + i)
        scale_i *= radius_i
        c *= radius_i
    # 64-bit only in the tile's corner, 32-bit inside: half the address registers.
    left_at = y + row_start.to(tl.int64) * depth + (m[:, None] * depth + k[None, :])
    right_offset = n[:, None] * depth + k[None, :]
    total = tl.zeros([BLOCK_M], tl.float32)
    shift = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if ONE_CHUNK:
        left = tl.load(left_at)
    for tile in range(first, last):
        column_start = tile * BLOCK_N
        j = column_start + n
        right_at = y + column_start.to(tl.int64) * depth + right_offset
        s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if ONE_CHUNK:
            s = _dot(left, tl.trans(tl.load(right_at)), s, PRECISION, UPCAST)
        else:
            for start in range(0, depth, BLOCK_K):
                s = _dot(tl.load(left_at + start), tl.trans(tl.load(right_at + start)), s, PRECISION, UPCAST)
        if not UNIT:
            s = s * tl.load(radius + j)[None, :]
        if BOUNDED:
            e = _exponentials(s, c[:, None], tl.abs(scale) * LOG2E)
            if _may_exclude(row_start, column_start, rows, samples, BLOCK_M, BLOCK_N):
                e = tl.where(_excluded(i, j, rows, samples), 0.0, e)
            total += tl.sum(e, 1)
        else:
            # The maximum swallows a NaN, the sum of exponentials does not.
            excluded = _excluded(i, j, rows, samples)
            larger = tl.maximum(shift, tl.max(tl.where(excluded, float("-inf"), s * scale_i[:, None]), 1))
            b = tl.where(larger == float("-inf"), 0.0, larger * LOG2E)  # no negative yet
            e = tl.where(excluded, 0.0, _exponentials(s, c[:, None], b[:, None]))
            total = total * tl.exp2(shift * LOG2E - b) + tl.sum(e, 1)
            shift = larger
    if BOUNDED:
        shift = tl.zeros([BLOCK_M], tl.float32) + tl.abs(scale)
    tl.store(split_shift + i, shift)
    tl.store(split_sum + i, total)


@_kernel
def _stream_sums(
    y,  # [padded, depth]
    radius,  # [padded]
    scale_ptr,  # []
    split_shift,  # [splits, padded] out
    split_sum,  # [splits, padded] out
    rows,
    padded,
    samples,
    depth,
    tiles,  # column tiles per split
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ONE_CHUNK: tl.constexpr,  # depth == BLOCK_K: the row block stays on the chip
    UNIT: tl.constexpr,  # radius is 1 throughout
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Program (I, split): over the split's column tiles, each row's sum of exp(scale·s − shift) over its negatives."""
    scale = tl.load(scale_ptr).to(tl.float32)
    row_start = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    first = split * tiles
    last = tl.minimum(first + tiles, tl.cdiv(rows, BLOCK_N))
    split_shift += split.to(tl.int64) * padded
    split_sum += split.to(tl.int64) * padded
    # The host never reads scale, so the choice falls here; a NaN takes the second way and stays one.
    if 2 * tl.abs(scale) <= BOUND:
        _sum_tiles(
            y, radius, scale, split_shift, split_sum, rows, samples, depth, row_start, first, last,
            True, BLOCK_M, BLOCK_N, BLOCK_K, ONE_CHUNK, UNIT, PRECISION, UPCAST,
        )  # fmt: skip
    else:
        _sum_tiles(
            y, radius, scale, split_shift, split_sum, rows, samples, depth, row_start, first, last,
            False, BLOCK_M, BLOCK_N, BLOCK_K, ONE_CHUNK, UNIT, PRECISION, UPCAST,
        )  # fmt: skip


@triton.jit
def _gradient_tiles(
    y, radius, scale, shift, weight, lift, du, rows, samples, depth, row_start, out_start, first, last,
    BOUNDED: tl.constexpr, LIFT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr, ONE_CHUNK: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    o = out_start + tl.arange(0, BLOCK_OUT)
    i = row_start + m
    c = tl.zeros([BLOCK_M], tl.float32) + scale * LOG2E
    if not UNIT:
        c *= tl.load(radius + i)
    left_at = y + row_start.to(tl.int64) * depth + (m[:, None] * depth + k[None, :])
    right_offset = n[:, None] * depth + k[None, :]
    out_offset = n[:, None] * depth + o[None, :]
    weight_i = tl.load(weight + i) * lift
    b_i = tl.load(shift + i, mask=i < rows, other=0.0) * LOG2E - LIFT
    acc = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    if ONE_CHUNK:
        left = tl.load(left_at)
    for tile in range(first, last):
        column_start = tile * BLOCK_N
        j = column_start + n
        columns = y + column_start.to(tl.int64) * depth
        weight_j = tl.load(weight + j) * lift
        s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if ONE_CHUNK:
            right = tl.load(columns + right_offset)
            s = _dot(left, tl.trans(right), s, PRECISION, UPCAST)
        else:
            for start in range(0, depth, BLOCK_K):
                s = _dot(
                    tl.load(left_at + start), tl.trans(tl.load(columns + right_offset + start)), s, PRECISION, UPCAST
                )
            right = tl.load(columns + out_offset)
        # w = A·radius_j, as the product that follows is with y.
        zero = tl.zeros(s.shape, tl.float32)
        if UNIT:
            from_i = zero + weight_i[:, None]
        else:
            radius_j = tl.load(radius + j)
            s = s * radius_j[None, :]
            weight_j = weight_j * radius_j
            from_i = weight_i[:, None] * radius_j[None, :]
        if BOUNDED:  # one shift for all rows: one exponential serves both directions
            w = _exponentials(s, c[:, None], tl.abs(scale) * LOG2E - LIFT) * (from_i + weight_j[None, :])
        else:
            b_j = tl.load(shift + j, mask=j < rows, other=0.0) * LOG2E - LIFT
            w = _exponentials(s, c[:, None], b_i[:, None]) * from_i
            w += _exponentials(s, c[:, None], b_j[None, :]) * weight_j[None, :]
        if _may_exclude(row_start, column_start, rows, samples, BLOCK_M, BLOCK_N):
            w = tl.where(_excluded(i, j, rows, samples), 0.0, w)
        acc = _dot(w.to(y.dtype.element_ty), right, acc, PRECISION, UPCAST)
    tl.store(du + row_start.to(tl.int64) * depth + (m[:, None] * depth + o[None, :]), acc)


@_kernel
def _stream_gradient(
    y,  # [padded, depth]
    radius,  # [padded]
    scale_ptr,  # []
    shift,  # [rows]
    weight,  # [padded] grad / total
    bound,  # [] no pair's weight is above twice this
    du,  # [splits, padded, depth] out: Σ_j A_ij u_j · 2^LIFT / bound
    rows,
    padded,
    samples,
    depth,
    tiles,  # column tiles per split
    LIFT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    ONE_CHUNK: tl.constexpr,  # depth == BLOCK_K == BLOCK_OUT: one load of a column block serves both products
    UNIT: tl.constexpr,  # radius is 1 throughout
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Program (I, split, out): the split's share of dU[I, out] = Σ_j A_ij u_j over the negatives j, with
    A_ij = exp(scale·s_ij − shift_i)·weight_i + exp(scale·s_ij − shift_j)·weight_j.

    A is symmetric, so the rows' own gradient and the one they get as columns come together: no atomics, fixed bits.
    Weights are divided by their bound: batches that are well trained have weights far below float32's, and well below
    half precision's, smallest number.
    """
    scale = tl.load(scale_ptr).to(tl.float32)
    largest = tl.load(bound)
    lift = tl.where(largest > 0, 1.0 / tl.maximum(largest, 1e-37), 1.0)
    row_start = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    out_start = tl.program_id(2) * BLOCK_OUT
    first = split * tiles
    last = tl.minimum(first + tiles, tl.cdiv(rows, BLOCK_N))
    du += split.to(tl.int64) * padded * depth
    if 2 * tl.abs(scale) <= BOUND:
        _gradient_tiles(
            y, radius, scale, shift, weight, lift, du, rows, samples, depth, row_start, out_start, first, last,
            True, LIFT, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_OUT, ONE_CHUNK, UNIT, PRECISION, UPCAST,
        )  # fmt: skip
    else:
        _gradient_tiles(
            y, radius, scale, shift, weight, lift, du, rows, samples, depth, row_start, out_start, first, last,
            False, LIFT, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_OUT, ONE_CHUNK, UNIT, PRECISION, UPCAST,
        )  # fmt: skip


def row_kernels(precision: str) -> tuple[tuple[Any, dict[str, Any]], ...]:
    """Every other kernel, with its own compile-time arguments: for compiling them ahead of time."""
    unit = precision.startswith("tf32")
    return (
        (_normalise_rows, {"UNIT": unit}),
        (_positive_similarities, {}),
        (_finish_sums, {}),
        (_row_weights, {}),
        (_reduce, {"LARGEST": True}),
        (_reduce, {"LARGEST": False}),
        (_finish_gradient, {"LIFT": configs.lift(precision)}),
    )


# ---- launchers ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Units:
    """The normalised rows, padded to whole tiles, with the float32 similarities of the positives."""

    y: Tensor  # [padded, depth]
    radius: Tensor  # [padded]
    shrink: Tensor  # [2, padded]
    floored: Tensor  # [padded]
    positives: Tensor  # [views-1, rows]
    rows: int
    padded: int
    samples: int
    depth: int


def _units(z: Tensor, views: int, tile: Tile, row: Row) -> _Units:
    rows, dim = z.shape
    block = max(tile.block_m, tile.block_n, row.block_r)  # powers of two
    padded = triton.cdiv(rows, block) * block
    depth = triton.cdiv(dim, tile.depth_step) * tile.depth_step
    y = z.new_empty(padded, depth)
    radius, floored = z.new_empty(2, padded, dtype=torch.float32)
    shrink = z.new_empty(2, padded, dtype=torch.float32)
    positives = z.new_empty(views - 1, rows, dtype=torch.float32)
    blocks = (padded // row.block_r,)
    _normalise_rows[blocks](
        z, y, radius, shrink, floored, rows, dim, depth, z.stride(0), z.stride(1), padded,
        z.dtype == torch.float32, row.block_r, row.block_d, num_warps=row.warps,
    )  # fmt: skip
    _positive_similarities[blocks](
        y, radius, positives, rows, rows // views, depth, views, row.block_r, row.block_d, num_warps=row.warps
    )
    return _Units(y, radius, shrink, floored, positives, rows, padded, rows // views, depth)


def _splits(programs: int, target: int, tiles: int) -> tuple[int, int]:
    """(splits of the columns, tiles in each): enough programs for a GPU, from the shape alone, so that bits do not
    depend on which GPU it is."""
    per_split = triton.cdiv(tiles, min(tiles, triton.cdiv(target, programs)))
    return triton.cdiv(tiles, per_split), per_split


def nt_xent(
    z: Tensor,  # [V·N, D] float32, float16 or bfloat16, any strides
    scale: Tensor,  # []
    views: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the twin `kernels.reference.similarity.nt_xent`; shift is |scale| if 2·|scale| ≤ 80, else the row's maximum.

    4 launches; 2·M²·D operations, b·M·D bytes of scratch (M rows, D columns, b bytes per element of z).
    """
    tile = configs.sums(z)
    precision = configs.kind(z.dtype)
    row = configs.row()
    rows = z.shape[0]
    nll, shift, negative_sum = (z.new_empty(rows, dtype=torch.float32) for _ in range(3))
    with torch.cuda.device_of(z):
        units = _units(z, views, tile, row)
        row_blocks = triton.cdiv(rows, tile.block_m)
        splits, tiles = _splits(row_blocks, tile.programs, triton.cdiv(rows, tile.block_n))
        split_shift, split_sum = z.new_empty(2, splits, units.padded, dtype=torch.float32)
        _stream_sums[(row_blocks, splits)](
            units.y, units.radius, scale, split_shift, split_sum, rows, units.padded, units.samples, units.depth, tiles,
            **configs.sums_constants(tile, precision), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        _finish_sums[(triton.cdiv(rows, row.block),)](
            split_shift, split_sum, units.positives, scale, nll, shift, negative_sum,
            rows, units.padded, splits, views, row.block, num_warps=row.warps,
        )  # fmt: skip
    return nll, shift, negative_sum


def nt_xent_backward(
    grad_nll: Tensor,  # [V·N], stride 0 too
    z: Tensor,  # [V·N, D]
    scale: Tensor,  # []
    shift: Tensor,  # [V·N]
    negative_sum: Tensor,  # [V·N]
    views: int,
) -> tuple[Tensor, Tensor]:
    """Gradient of `nt_xent`'s nll: grad_z like z (contiguous), grad_scale like scale; bitwise the same in every run.

    7 launches; 4·M²·D operations for D up to one block of output columns; scratch as the top of this file says.
    """
    tile = configs.gradient(z)
    precision = configs.kind(z.dtype)
    row = configs.row()
    rows, dim = z.shape
    lift = configs.lift(precision)
    grad_nll, shift, negative_sum = (x.contiguous() for x in (grad_nll, shift, negative_sum))
    grad_z = z.new_empty(z.shape)
    grad_scale = torch.empty_like(scale)
    with torch.cuda.device_of(z):
        units = _units(z, views, tile, row)
        weight, mean_positive = z.new_empty(2, units.padded, dtype=torch.float32)
        weight_blocks = triton.cdiv(units.padded, row.block)
        bounds = z.new_empty(weight_blocks, dtype=torch.float32)
        bound = z.new_empty((), dtype=torch.float32)
        _row_weights[(weight_blocks,)](
            grad_nll, units.positives, scale, shift, negative_sum, weight, mean_positive, bounds,
            rows, units.padded, views, row.block, num_warps=row.warps,
        )  # fmt: skip
        _reduce[(1,)](bounds, bound, weight_blocks, True, row.block_reduce, num_warps=row.warps)

        row_blocks = triton.cdiv(rows, tile.block_m)
        out_blocks = units.depth // tile.block_out
        splits, tiles = _splits(row_blocks * out_blocks, tile.programs, triton.cdiv(rows, tile.block_n))
        du = z.new_empty(splits, units.padded, units.depth, dtype=torch.float32)
        _stream_gradient[(row_blocks, splits, out_blocks)](
            units.y, units.radius, scale, shift, weight, bound, du,
            rows, units.padded, units.samples, units.depth, tiles, **configs.gradient_constants(tile, precision),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

        blocks = units.padded // row.block_r
        parts = z.new_empty(blocks, dtype=torch.float32)
        _finish_gradient[(blocks,)](
            units.y, units.radius, units.shrink, units.floored, du, units.positives, weight, mean_positive,
            negative_sum, shift, bound, scale, grad_z, parts, rows, units.padded, dim, units.depth, splits,
            units.samples, views, lift, row.block_r, row.block_d, num_warps=row.warps,
        )  # fmt: skip
        _reduce[(1,)](parts, grad_scale, blocks, False, row.block_reduce, num_warps=row.warps)
    return grad_z, grad_scale
