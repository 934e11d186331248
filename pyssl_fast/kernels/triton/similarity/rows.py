"""What is only O(M·D) beside the tiles: rows copied in and normalised, positives, sums and gradients brought together.

Exponents are in base 2: exp(scale·s − shift) = 2^(c·s − b) with c = scale·log2(e). Every kernel derives c by the same
multiplication, so that forward, backward, positives and negatives agree: a rounding of c then only means a scale that
differs by half an ulp. What leaves a kernel is float64 where digits would be lost otherwise: a log-sum-exp of 200 in
float32 is known to 1.5e-5, its difference from a positive's logit no better.
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
NORM_FLOOR = tl.constexpr(1e-12)  # torch.nn.functional.normalize's eps
BOUND = tl.constexpr(80.0)  # exp(−80) is still a normal float32
NOWHERE = tl.constexpr(1e30)  # the shift of a row without pairs: every exponential is 0

# Arguments that are integers. Sizes that change from batch to batch get no code of their own: one binary per tile, the
# one whose registers were looked at.
INTEGERS = (
    "rows", "columns", "padded", "own_padded", "other_padded", "paired", "samples", "dim", "depth", "row_stride",
    "column_stride", "tiles", "splits", "views",
)  # fmt: skip
kernel = triton.jit(do_not_specialize=["rows", "columns", "paired", "samples", "dim", "tiles", "splits", "views"])


@triton.jit
def bounded(scale, steepest):
    """Whether one shift of p·|scale| serves every row: for all |s| ≤ 1 and p ≤ steepest exp(p·t − shift) is a normal
    float32. Only where rows were normalised here. A NaN is not bounded, and stays one.
    """
    return 2 * steepest * tl.abs(scale) <= BOUND


# ---- rows in --------------------------------------------------------------------------------------------------------


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


@kernel
def copy_rows(
    z,  # [rows, dim], any strides
    y,  # [padded, depth] out: z; 0 outside [rows, dim]
    rows,
    dim,
    depth,
    row_stride,
    column_stride,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    for start in range(0, depth, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        tile = _load_rows(z, i, d, rows, dim, row_stride, column_stride)
        tl.store(y + (i[:, None] * depth + d[None, :]), tile, mask=(d < depth)[None, :])


@kernel
def normalise_rows(
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
    else:
        tl.store(radius + i, 1.0 / length)
    tl.store(shrink + i, 1.0 / length)
    tl.store(shrink + padded + i, down)
    tl.store(floored + i, below.to(tl.float32))


@triton.jit
def _load_units(
    y,  # [padded, depth]
    radius,  # [padded], or None: 1
    i,  # [BLOCK_R] int64
    d,  # [BLOCK_D]
    depth,
):
    """[BLOCK_R, BLOCK_D] of u."""
    tile = tl.load(y + (i[:, None] * depth + d[None, :]), mask=(d < depth)[None, :], other=0.0).to(tl.float32)
    if radius is not None:
        tile = tile * tl.load(radius + i)[:, None]
    return tile


# ---- forward --------------------------------------------------------------------------------------------------------


@triton.jit
def _partner(
    i,  # [BLOCK_R] int64
    v,
    rows,
    samples,
    SYMMETRIC: tl.constexpr,
):
    """[BLOCK_R] the v-th positive of every row; of padding some other row."""
    partner = tl.where(i < rows, i, 0)
    if SYMMETRIC:
        partner += (v + 1) * samples
        partner = tl.where(partner < rows, partner, partner - rows)  # a 64-bit remainder is a call that spills
    return partner


@kernel
def positive_logits(
    y,  # [padded, depth]
    radius,  # [padded] or None
    x,  # [·, depth] the columns; y itself if SYMMETRIC
    x_radius,  # [·] or None
    scale_ptr,  # []
    positive,  # [views-1, rows] float64 out
    rows,
    samples,
    depth,
    views,
    SYMMETRIC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """t of row i and its positives: row i + (v + 1)·samples if SYMMETRIC, else column i."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.load(scale_ptr).to(tl.float32) * LOG2E
    for v in range(0, views - 1):
        partner = _partner(i, v, rows, samples, SYMMETRIC)
        s = tl.zeros([BLOCK_R], tl.float32)
        for start in range(0, depth, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            s += tl.sum(_load_units(y, radius, i, d, depth) * _load_units(x, x_radius, partner, d, depth), 1)
        t = s.to(tl.float64) * c.to(tl.float64) / 1.4426950408889634
        tl.store(positive + i, t, mask=i < rows)
        positive += rows


@triton.jit
def _merge_splits(
    split_shift,  # [splits, padded]
    split_sum,  # [splits, padded]
    i,  # [BLOCK]
    padded,
    splits,
    BLOCK: tl.constexpr,
):
    """(b, total) over all splits, one after the other: a fixed order."""
    b = tl.full([BLOCK], float("-inf"), tl.float32)
    at = split_shift + i
    for _ in range(0, splits):
        b = tl.maximum(b, tl.load(at))
        at += padded
    b = tl.where(b == float("-inf"), 0.0, b)
    total = tl.zeros([BLOCK], tl.float64)
    at = split_sum + i
    shift_at = split_shift + i
    for _ in range(0, splits):
        total += (tl.load(at) * tl.exp2(tl.load(shift_at) - b)).to(tl.float64)
        at += padded
        shift_at += padded
    return b, total


@kernel
def finish_sums(
    split_shift,  # [splits, padded] base 2; −inf where a split met no pair
    split_sum,  # [splits, padded] Σ over the split's pairs of 2^(c·s − split_shift)
    lse,  # [rows] float64 out
    rows,
    padded,
    splits,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    i = tl.where(i < padded, i, 0)
    b, total = _merge_splits(split_shift, split_sum, i, padded, splits, BLOCK)
    tl.store(lse + i, b.to(tl.float64) / 1.4426950408889634 + tl.log(total), mask=i < rows)


@kernel
def merge_keys(
    split_shift,  # [splits, padded]
    split_sum,  # [splits, padded]
    split_key,  # [splits, padded, depth] Σ over the split's pairs of 2^(c·s − split_shift)·k
    mean_key,  # [rows, dim] float32 out, contiguous
    rows,
    padded,
    dim,
    depth,
    splits,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    b, total = _merge_splits(split_shift, split_sum, i, padded, splits, BLOCK_R)
    share = tl.where(total == 0, 0.0, 1 / tl.where(total == 0, 1.0, total)).to(tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mean = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
        at = split_key + (i[:, None] * depth + d[None, :])
        shift_at = split_shift + i
        for _ in range(0, splits):
            part = tl.load(at, mask=(d < depth)[None, :], other=0.0)
            mean += part * (tl.exp2(tl.load(shift_at) - b) * share)[:, None]
            at += padded.to(tl.int64) * depth
            shift_at += padded
        tl.store(mean_key + i[:, None] * dim + d[None, :], mean, mask=(i < rows)[:, None] & (d < dim)[None, :])


# ---- backward -------------------------------------------------------------------------------------------------------


@kernel
def row_weights(
    lse,  # [rows] float64
    grad,  # [rows] float64
    bound,  # [] float64: no pair's weight is above it
    scale_ptr,  # []
    shift,  # [padded] out: b
    weight,  # [padded] out: so that weight·2^(power·c·s − b) is the weight of a pair, over bound
    power,
    steepest,
    rows,
    padded,
    NORMALIZED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(scale_ptr).to(tl.float32)
    exact = tl.load(lse + i, mask=i < rows, other=float("-inf")) * 1.4426950408889634
    none = exact == float("-inf")
    exact = tl.where(none, 0.0, exact)
    b = exact.to(tl.float32)
    if NORMALIZED:
        b = tl.where(bounded(scale, steepest), tl.abs(scale * LOG2E * power), b)
    # A shift in float32 alone would leave 1.5e-5 of the weights open at logits of 200. What it lacks stands here.
    grad = tl.load(grad + i, mask=i < rows, other=0.0)
    value = power * grad / tl.load(bound) * tl.exp2(b.to(tl.float64) - exact)
    tl.store(shift + i, tl.where(none, NOWHERE, b), mask=i < padded)
    tl.store(weight + i, tl.where(none, 0.0, value), mask=i < padded)


@triton.jit
def _unit_gradient(
    y, radius, x, x_radius, du, pull, factor, i, d, rows, paired, padded, depth, splits, samples, views,
    SYMMETRIC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of u, without the factor scale, in columns d: the streamed pairs and the positives."""
    gradient = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    at = du + (i[:, None] * depth + d[None, :])
    for _ in range(0, splits):
        gradient += tl.load(at, mask=(d < depth)[None, :], other=0.0)
        at += padded.to(tl.int64) * depth
    gradient = gradient * factor
    if pull is not None:
        for v in range(0, views - 1):
            partner = _partner(i, v, paired, samples, SYMMETRIC)
            pull_i = tl.load(pull + i, mask=i < paired, other=0.0)
            pull += paired
            gradient += pull_i[:, None] * _load_units(x, x_radius, partner, d, depth)
    return gradient


@kernel
def finish_gradient(
    y,  # [padded, depth]
    radius,  # [padded] or None
    x,  # [·, depth] the other side; y itself if SYMMETRIC
    x_radius,  # [·] or None
    shrink,  # [2, padded], or None: not normalised
    floored,  # [padded]
    du,  # [splits, padded, depth] in units of bound·2^−LIFT
    pull,  # [views-1, paired] gradient of t of row i and its positives, those of `_partner`; or None
    bound,  # [] float64
    scale_ptr,  # []
    grad_z,  # [rows, dim] out, contiguous
    grad_scale_parts,  # [blocks] float64 out: Σ ⟨u, dU⟩
    rows,
    paired,
    padded,
    dim,
    depth,
    splits,
    samples,
    views,
    SYMMETRIC: tl.constexpr,
    LIFT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adds the positives, and carries the gradient from u to z: (dU − u⟨u, dU⟩) / ‖z‖."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    real = i < rows
    scale = tl.load(scale_ptr).to(tl.float32)
    factor = (tl.load(bound) * 2.0 ** (-LIFT)).to(tl.float32)
    inner = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gradient = _unit_gradient(
            y, radius, x, x_radius, du, pull, factor, i, d,
            rows, paired, padded, depth, splits, samples, views, SYMMETRIC, BLOCK_R, BLOCK_D,
        )  # fmt: skip
        inner += tl.sum(gradient * _load_units(y, radius, i, d, depth), 1)
        if shrink is None:
            tl.store(grad_z + i[:, None] * dim + d[None, :], gradient * scale, mask=real[:, None] & (d < dim)[None, :])
    part = tl.sum(tl.where(real, inner, 0.0), 0)
    if shrink is not None:
        # Below the floor u is z / 1e-12: no projection.
        inner = tl.where(tl.load(floored + i) != 0, 0.0, inner)
        shrink_i = scale * tl.load(shrink + i)
        again_i = tl.load(shrink + padded + i)
        for start in range(0, dim, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            gradient = _unit_gradient(
                y, radius, x, x_radius, du, pull, factor, i, d,
                rows, paired, padded, depth, splits, samples, views, SYMMETRIC, BLOCK_R, BLOCK_D,
            )  # fmt: skip
            gradient -= _load_units(y, radius, i, d, depth) * inner[:, None]
            gradient = gradient * shrink_i[:, None] * again_i[:, None]
            tl.store(grad_z + i[:, None] * dim + d[None, :], gradient, mask=real[:, None] & (d < dim)[None, :])
    tl.store(grad_scale_parts + tl.program_id(0), part.to(tl.float64))


# ---- launchers ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Units:
    """Rows, normalised or as they are, padded with zeros to whole tiles so that inner loops load without masks."""

    y: Tensor  # [padded, depth]
    radius: Tensor | None  # [padded]; None: 1
    shrink: Tensor | None  # [2, padded]; None: not normalised
    floored: Tensor | None  # [padded]
    rows: int
    dim: int

    @property
    def padded(self) -> int:
        return self.y.shape[0]

    @property
    def depth(self) -> int:
        return self.y.shape[1]


def _up(length: int, step: int) -> int:
    return triton.cdiv(length, step) * step


def units(z: Tensor, normalize: bool, tile: Tile, row: Row) -> Units:
    """The copy of z [rows, dim] that the tiles read; z itself where it is whole tiles already."""
    rows, dim = z.shape
    padded = _up(rows, max(tile.block_m, tile.block_n, row.block_r))  # powers of two
    depth = _up(dim, tile.depth_step)
    if not normalize and (padded, depth) == (rows, dim) and z.is_contiguous() and z.data_ptr() % 16 == 0:
        return Units(z, None, None, None, rows, dim)
    y = z.new_empty(padded, depth)
    blocks = (padded // row.block_r,)
    shape = {"BLOCK_R": row.block_r, "BLOCK_D": row.block_d, "num_warps": row.warps}
    if not normalize:
        copy_rows[blocks](z, y, rows, dim, depth, z.stride(0), z.stride(1), **shape)
        return Units(y, None, None, None, rows, dim)
    unit = z.dtype == torch.float32
    shrink = z.new_empty(2, padded, dtype=torch.float32)
    radius, floored = z.new_empty(2, padded, dtype=torch.float32)
    normalise_rows[blocks](
        z, y, None if unit else radius, shrink, floored, rows, dim, depth, z.stride(0), z.stride(1), padded,
        UNIT=unit, **shape,
    )  # fmt: skip
    return Units(y, None if unit else radius, shrink, floored, rows, dim)


def positives(u: Units, v: Units | None, scale: Tensor, views: int, row: Row) -> Tensor:
    """[views-1, rows] float64 logits of the positives."""
    positive = u.y.new_empty(max(views - 1, 0), u.rows, dtype=torch.float64)
    if views:
        x = u if v is None else v
        positive_logits[(triton.cdiv(u.rows, row.block_r),)](
            u.y, u.radius, x.y, x.radius, scale, positive, u.rows, u.rows // views, u.depth, views,
            SYMMETRIC=v is None, BLOCK_R=row.block_r, BLOCK_D=row.block_d, num_warps=row.warps,
        )  # fmt: skip
    return positive


def gradient(
    u: Units,
    v: Units | None,  # None: symmetric
    du: Tensor,  # [splits, padded, depth]
    grad_positive: Tensor | None,  # [views-1, rows] float64
    bound: Tensor,  # [] float64
    scale: Tensor,
    views: int,
    lift: int,
    row: Row,
) -> tuple[Tensor, Tensor]:
    """(gradient of u's rows [rows, dim], Σ ⟨u, dU⟩ [] float64)."""
    grad = u.y.new_empty(u.rows, u.dim)
    x = u if v is None else v
    pull = grad_positive
    if pull is not None:
        if v is None:  # a row is the positive of its positives, the other way round
            samples = u.rows // views
            pull = pull + torch.stack([pull[views - 2 - n].roll(-(n + 1) * samples) for n in range(views - 1)])
        pull = pull.float()
    blocks = triton.cdiv(u.rows, row.block_r)
    parts = du.new_empty(blocks, dtype=torch.float64)
    finish_gradient[(blocks,)](
        u.y, u.radius, x.y, x.radius, u.shrink, u.floored, du, pull, bound, scale, grad, parts,
        u.rows, 0 if pull is None else pull.shape[1], u.padded, u.dim, u.depth, du.shape[0],
        u.rows // max(views, 1), views, SYMMETRIC=v is None, LIFT=lift,
        BLOCK_R=row.block_r, BLOCK_D=row.block_d, num_warps=row.warps,
    )  # fmt: skip
    return grad, parts.sum()


def sums_to_lse(split_shift: Tensor, split_sum: Tensor, out: Tensor, row: Row) -> None:
    """out [rows] float64 from [splits, padded] each."""
    splits, padded = split_shift.shape
    finish_sums[(triton.cdiv(len(out), row.block),)](
        split_shift, split_sum, out, len(out), padded, splits, BLOCK=row.block, num_warps=row.warps
    )


def splits(programs: int, target: int, tiles: int) -> tuple[int, int]:
    """(splits of the columns, tiles in each): enough programs for a GPU, from the shape alone, so that bits do not
    depend on which GPU it is."""
    per_split = triton.cdiv(tiles, min(tiles, triton.cdiv(target, programs)))
    return triton.cdiv(tiles, per_split), per_split


def row_kernels(precision: str) -> tuple[tuple[Any, dict[str, Any]], ...]:
    """Every row kernel as it is launched, with its own compile-time arguments: for compiling them ahead of time."""
    unit = precision.startswith("tf32")
    lift = configs.lift(precision)
    radius: dict[str, Any] = {"radius": None, "x_radius": None} if unit else {}
    plain = {"radius": None, "x_radius": None, "shrink": None, "floored": None, "LIFT": lift}
    return (
        (copy_rows, {}),
        (normalise_rows, {"UNIT": unit, **({"radius": None} if unit else {})}),
        (positive_logits, {"SYMMETRIC": True, **radius}),
        (finish_sums, {}),
        (merge_keys, {}),
        (row_weights, {"NORMALIZED": True}),
        (finish_gradient, {"SYMMETRIC": True, "LIFT": lift, **radius}),
        (finish_gradient, {"SYMMETRIC": False, **plain}),
        (finish_gradient, {"SYMMETRIC": False, "pull": None, **plain}),
    )
