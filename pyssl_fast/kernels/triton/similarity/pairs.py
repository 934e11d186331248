"""What both forms do with pairs: which of them count, in what order they stand, and a cross-entropy's logarithm."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOWEST = tl.constexpr(-(1 << 31))  # below every float32 in order
_LOW_HALF = tl.constexpr(0xFFFFFFFF)
_INFINITELY_LOW = -2139095041  # −inf in order


@triton.jit
def others(
    i,  # [BLOCK_M]
    j,  # [BLOCK_N]
    inside,  # [BLOCK_M, BLOCK_N] or [1, BLOCK_N]
    samples,
    PAIRED: tl.constexpr,  # whether i and j ≡ i mod samples are one sample: the row itself or a positive
):
    """[BLOCK_M, BLOCK_N] inside, and not of one sample."""
    inside = inside & (i >= 0)[:, None]
    if PAIRED:
        inside = inside & ((i % samples)[:, None] != (j % samples)[None, :])
    return inside


@triton.jit
def kinds(
    i,  # [BLOCK_M]
    j,  # [BLOCK_N]
    inside,  # [BLOCK_M, BLOCK_N] or [1, BLOCK_N]
    is_row,  # [BLOCK_M] whether there is a row i
    is_column,  # [BLOCK_N]
    row_ids,  # int64 or None
    column_ids,
    samples,
    PAIRED: tl.constexpr,
):
    """(negatives, same) of a tile, as the twin's."""
    other = others(i, j, inside, samples, PAIRED)
    if row_ids is None:
        return other, other & (j < 0)[None, :]
    else:
        id_i = tl.load(row_ids + i, mask=is_row, other=0)
        id_j = tl.load(column_ids + j, mask=is_column, other=0)
        equal = id_i[:, None] == id_j[None, :]
        return other & (equal == 0), other & equal


@triton.jit
def within(keep, t, limit):
    """The kept pairs that are not beyond their limit. A NaN is not, and travels."""
    return keep & ((t > limit) == 0)


@triton.jit
def log1p(x):
    """log(1 + x) for 0 ≤ x ≤ 1, to about 2 ulp: the hardware's logarithm is only good in absolute terms around 1."""
    t = x / (2.0 + x)  # log(1 + x) = 2·atanh(t); t ≤ 1/3, so eight terms leave 1e-9
    q = t * t
    series = 1 / 15.0
    series = series * q + 1 / 13.0
    series = series * q + 1 / 11.0
    series = series * q + 1 / 9.0
    series = series * q + 1 / 7.0
    series = series * q + 1 / 5.0
    series = series * q + 1 / 3.0
    series = series * q + 1.0
    return 2.0 * t * series


@triton.jit
def ordered(x):
    """int32 in the order of x, a NaN above all, −0 equal to 0."""
    bits = tl.where(x != x, 0x7FC00000, (x + 0.0).to(tl.int32, bitcast=True))
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key(
    order,  # int32, of `ordered`
    index,  # int32, broadcastable with order
):
    """int64 in that order, equal ones by index, the first the largest."""
    return (order.to(tl.int64) << 32) | (_LOW_HALF - index.to(tl.int64))


def from_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(value float32, index) that were made a `key`; −inf and −1 where the value is −inf or there was none."""
    high = keys >> 32
    none = high <= _INFINITELY_LOW
    bits = (high ^ ((high >> 31) & 0x7FFFFFFF)).to(torch.int32)
    return bits.view(torch.float32).masked_fill(none, -torch.inf), (~keys & 0xFFFFFFFF).masked_fill(none, -1)


def together(row_ids: Tensor | None, column_ids: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both, or neither."""
    if row_ids is None or column_ids is None:
        return None, None
    return row_ids.contiguous(), column_ids.contiguous()
