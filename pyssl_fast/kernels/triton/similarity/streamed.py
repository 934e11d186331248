"""Streamed: every program owns a block of rows and walks over all columns, S in tiles that never leave the chip.

Row kernels copy the operands, normalised where asked for and padded with zeros to whole tiles, so that the inner loops
load without masks; the keys of a bank are read as they lie. What a program sums stays in its registers until the walk
ends: no atomics, the same bits in every run. A reduction over columns is the same kernel with the operands' roles
swapped, S formed again. Small batches split the columns among programs, whose shares are added in a fixed order.

A product of M rows and N columns of D is 2·M·N·D operations. S is formed again where it is needed again, so that
there is a product more than in the chunked form, which pays in bytes instead:

                                                streamed    chunked
    contrast, rows with each other              1           ½
    contrast, terms of rows alone               1           1
    contrast, both directions                   2           1       M·N exponentials for each
    contrast_backward, rows with each other     2           1½
    contrast_backward, both gradients           4           3       2 for either alone, chunked 2
    bank_contrast, T terms                      2·T         1 + T
    sigmoid_contrast, value alone               1           1
    sigmoid_contrast, both gradients            4           3       2 for grad_q, the value among them, 2 for grad_k
    neighbours                                  1           1

if D fits one output block; for each further block of output columns S is formed once more.

    bytes   operands once from memory, then from the L2 cache: about 3·b·(M + N)·D forward, b bytes each
    extra   b·(M + N)·D for the copies; where rows of D are summed, 4·P·M·D for P partial sums, P = 1 from 256 row
            blocks on and never P·M > max(M, 4·(M + N)); nothing of size M·N

Predicted time of forward + backward of NT-Xent, 6·M²·D operations (×3 for tf32x3) at the dense matrix rate, or 2·M²
exponentials at 16 per clock and multiprocessor where that is more (e). A floor, in ms; **predicted, not measured**:

    M × D            float32 "highest"       float32 "high"         bf16, fp16
                     A100   H100   B200      A100   H100   B200     A100   H100   B200
    8,192 × 128      0.99   0.31   0.14      0.33   0.10   0.05     0.17   0.05   0.03 e
    65,536 × 128     63.4   20.0   9.0       21.1   6.7    3.0      10.6   3.3    2.0 e

    CLIP, 12·M·N·D operations, D one output block:
    32,768 × 256     63.4   20.0   9.0       21.1   6.7    3.0      10.6   3.3    1.5

    MoCo, 256 queries × 65,536 keys of 128, 4·M·N·D operations, in µs: 27.5 / 8.7 / 3.8 in bf16, where reading the keys
    (16.8 MB) takes 10.8 / 5.0 / 2.1

    with 156 / 495 / 1,100 TFLOP/s for tf32, 312 / 989 / 2,250 for bf16, 2.4 / 3.7 / 4.4 · 10¹² exponentials/s and
    1.55 / 3.35 / 8 TB/s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from pyssl_fast.kernels.reference.similarity import COLUMNS, SAME
from pyssl_fast.kernels.triton import configs
from pyssl_fast.kernels.triton.configs import Tile
from pyssl_fast.kernels.triton.similarity import rows as row_kernels
from pyssl_fast.kernels.triton.similarity.pairs import from_keys, together
from pyssl_fast.kernels.triton.similarity.rows import Units, splits, units
from pyssl_fast.kernels.triton.similarity.tiles import (
    stream_bank,
    stream_gradient,
    stream_neighbours,
    stream_sigmoid,
    stream_sums,
)


def _split(terms: Sequence[int], powers: Sequence[float], side: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(1 for same, 0 for negatives, of every term of a side; their powers)."""
    chosen = [(int(bool(t & SAME)), float(p)) for t, p in zip(terms, powers, strict=True) if (t & COLUMNS) == side]
    return tuple(t for t, _ in chosen), tuple(p for _, p in chosen)


def _narrow(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().contiguous()


def _samples(rows: int, columns: int | None, views: int) -> tuple[int, bool]:
    """(i and j are of one sample if i ≡ j mod samples; whether any are)."""
    if columns is None:
        return rows // max(views, 1), True
    return max(rows, columns), views > 0


def _splits_of_sums(tile: Tile, programs: int, near: Units, columns: int) -> tuple[int, int]:
    """As `splits`, where each has rows of D of its own: together at most four times the rows and columns themselves."""
    most = max(1, 4 * (near.rows + columns) * near.dim // near.y.numel())
    return splits(programs, min(tile.programs, programs * most), triton.cdiv(columns, tile.block_n))


def _statistics(parts: Tensor, count: int) -> Tensor:
    """[3, count] float64 from [3, splits, padded]."""
    parts = parts[:, :, :count]
    total, number = parts[1:].sum(1, dtype=torch.float64)
    return torch.stack((torch.where(total.isnan(), total, parts[0].amax(0).double()), total, number))


def _sums(
    u: Units,
    v: Units,
    scale: Tensor,
    ids: tuple[Tensor | None, Tensor | None],
    limit: Tensor | None,
    same: tuple[int, ...],
    powers: tuple[float, ...],
    steepest: float,
    sample: tuple[int, bool],
    statistics: bool,
    tile: Tile,
    precision: str,
    plain: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """([lse [rows] float64 of every term], [statistics [3, rows]] or []) of u's rows over v's."""
    row = configs.row()
    row_blocks = triton.cdiv(u.rows, tile.block_m)
    parts, tiles = splits(row_blocks, tile.programs, triton.cdiv(v.rows, tile.block_n))
    empty = lambda n: u.y.new_empty(n, parts, u.padded, dtype=torch.float32)  # noqa: E731
    shift, total, watched = empty(len(same)), empty(len(same)), empty(3) if statistics else None
    stream_sums[(row_blocks, parts)](
        u.y, u.radius, v.y, v.radius, scale, *ids, limit, powers or (1.0,), shift, total, watched, steepest,
        u.rows, v.rows, u.padded, sample[0], u.depth, tiles,
        **sums_constants(tile, precision, same, sample[1], u.shrink is not None, plain),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    lse = [u.y.new_empty(u.rows, dtype=torch.float64) for _ in same]
    for term, out in enumerate(lse):
        row_kernels.sums_to_lse(shift[term], total[term], out, row)
    return lse, [] if watched is None else [_statistics(watched, u.rows)]


def sums_constants(
    tile: Tile, precision: str, terms: tuple[int, ...], paired: bool, normalized: bool, plain: bool
) -> dict[str, Any]:
    """stream_sums' compile-time arguments."""
    return {
        **configs.tile_constants(tile, precision), "TERMS": terms, "PAIRED": paired, "NORMALIZED": normalized,
        "PLAIN": plain,
    }  # fmt: skip


def gradient_constants(
    tile: Tile,
    precision: str,
    own: tuple[int, ...],
    other: tuple[int, ...],
    alike: bool,
    paired: bool,
    normalized: bool,
    plain: bool,
) -> dict[str, Any]:
    """stream_gradient's compile-time arguments."""
    return {
        **configs.tile_constants(tile, precision), "BLOCK_OUT": tile.block_out, "LIFT": configs.lift(precision),
        "OWN": own, "OTHER": other, "ALIKE": alike, "PAIRED": paired, "NORMALIZED": normalized, "PLAIN": plain,
    }  # fmt: skip


def _is_plain(ids: Tensor | None, limits: Sequence[Tensor | None], terms: Sequence[int], statistics: bool) -> bool:
    return ids is None and not statistics and all(x is None for x in limits) and not any(t & SAME for t in terms)


def _one_a_side(terms: Sequence[int]) -> bool:
    return sum(t & COLUMNS == 0 for t in terms) <= 1 and sum(t & COLUMNS != 0 for t in terms) <= 1


def contrast(
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    column_limit: Tensor | None,
    terms: Sequence[int],
    powers: Sequence[float],
    views: int,
    normalize: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the twin. 4 launches for NT-Xent; 1 product for the rows and 1 for the columns if any term is of theirs."""
    ids = together(row_ids, row_ids if k is None else column_ids)
    limits = _narrow(row_limit), _narrow(column_limit)
    plain = _is_plain(ids[0], limits, terms, statistics)
    tile = configs.sums(q, plain and _one_a_side(terms))
    row, precision = configs.row(), configs.kind(q.dtype)
    sample = _samples(q.shape[0], None if k is None else k.shape[0], views)
    steepest = float(max(powers, default=1.0))
    lse: dict[int, list[Tensor]] = {}
    found: list[Tensor] = []
    with torch.cuda.device_of(q):
        u = units(q, normalize, tile, row)
        v = None if k is None else units(k, normalize, tile, row)
        for side in (0, COLUMNS):
            same, own_powers = _split(terms, powers, side)
            if not same and not (statistics and side == 0):
                continue
            near, far = (u, v or u) if side == 0 else (v or u, u)
            lse[side], watched = _sums(
                near, far, scale, ids if side == 0 else ids[::-1], limits[side], same, own_powers, steepest, sample,
                statistics, tile, precision, plain,
            )  # fmt: skip
            found += watched
        positive = row_kernels.positives(u, v, scale, views, row)
    ordered = [lse[term & COLUMNS].pop(0) for term in terms]
    nothing = positive.new_empty(3, 0)
    return (
        torch.cat(ordered) if len(ordered) != 1 else ordered[0],
        positive,
        torch.cat(found, 1) if found else nothing,
    )


def _weights(
    parts: list[tuple[Tensor, Tensor, float]],  # (lse, grad_lse, power) of every term of a side
    u: Units,
    scale: Tensor,
    bound: Tensor,
    steepest: float,
) -> tuple[Tensor, Tensor]:
    """(shift, weight), [terms, padded] float32 each."""
    row = configs.row()
    shift, weight = (u.y.new_empty(len(parts), u.padded, dtype=torch.float32) for _ in range(2))
    for term, (lse, grad, power) in enumerate(parts):
        row_kernels.row_weights[(triton.cdiv(u.padded, row.block),)](
            lse, grad, bound, scale, shift[term], weight[term], power, steepest, u.rows, u.padded,
            NORMALIZED=u.shrink is not None, BLOCK=row.block, num_warps=row.warps,
        )  # fmt: skip
    return shift, weight


def contrast_backward(
    grad_lse: Tensor,
    grad_positive: Tensor,
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    column_limit: Tensor | None,
    lse: Tensor,
    terms: Sequence[int],
    powers: Sequence[float],
    views: int,
    normalize: bool,
    needs_q: bool,
    needs_k: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the twin; bitwise the same in every run. 2 products for every gradient, for D up to one output block."""
    ids = together(row_ids, row_ids if k is None else column_ids)
    limits = _narrow(row_limit), _narrow(row_limit if k is None else column_limit)
    plain = _is_plain(ids[0], limits, terms, False)
    tile = configs.gradient(q, plain and _one_a_side(terms))
    row, precision = configs.row(), configs.kind(q.dtype)
    lift = configs.lift(precision)
    sample = _samples(q.shape[0], None if k is None else k.shape[0], views)
    steepest = float(max(powers, default=1.0))
    grad_lse, grad_positive = grad_lse.double().contiguous(), grad_positive.double().contiguous()
    # A pair's weights add up to no more than twice this.
    bound = grad_lse.abs().amax() * (0.5 * steepest * max(2, len(terms) * (2 if k is None else 1)))
    bound = (bound + (bound == 0)).clamp_min(torch.finfo(torch.float32).tiny)
    with torch.cuda.device_of(q):
        u = units(q, normalize, tile, row)
        v = None if k is None else units(k, normalize, tile, row)
        # 1. Of every term, what its rows' pairs weigh.
        parts: dict[int, list[tuple[Tensor, Tensor, float]]] = {0: [], COLUMNS: []}
        start = 0
        for term, power in zip(terms, powers, strict=True):
            side = term & COLUMNS
            stop = start + (u.rows if side == 0 or v is None else v.rows)
            parts[side].append((lse[start:stop], grad_lse[start:stop], float(power)))
            start = stop
        of_rows = _weights(parts[0], u, scale, bound, steepest)
        of_columns = of_rows if v is None else _weights(parts[COLUMNS], v, scale, bound, steepest)
        rows_terms = _split(terms, powers, 0)
        columns_terms = rows_terms if v is None else _split(terms, powers, COLUMNS)

        # 2. The same kernel for either side.
        def side_gradient(near: Units, far: Units, swap: bool) -> tuple[Tensor, Tensor]:
            own, other = (columns_terms, rows_terms) if swap else (rows_terms, columns_terms)
            own_weights, other_weights = (of_columns, of_rows) if swap else (of_rows, of_columns)
            own_limit, other_limit = limits[::-1] if swap else limits
            row_blocks, out_blocks = triton.cdiv(near.rows, tile.block_m), near.depth // tile.block_out
            count, tiles = _splits_of_sums(tile, row_blocks * out_blocks, near, far.rows)
            du = q.new_empty(count, near.padded, near.depth, dtype=torch.float32)
            constants = gradient_constants(tile, precision, own[0], other[0], own == other, sample[1], normalize, plain)
            stream_gradient[(row_blocks, count, out_blocks)](
                near.y, near.radius, far.y, far.radius, scale, *(ids[::-1] if swap else ids), own_limit, other_limit,
                own[1] or (1.0,), other[1] or (1.0,), *own_weights, *other_weights, du, steepest,
                near.rows, far.rows, near.padded, far.padded, sample[0], near.depth, tiles,
                **constants, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
            return row_kernels.gradient(
                near, None if v is None else far, du, grad_positive if views else None, bound, scale, views, lift, row
            )

        none = q.new_empty(0)
        if v is None:
            grad_q, inner = side_gradient(u, u, False)
            return grad_q, none, (0.5 * inner).to(scale.dtype)  # each pair is seen from both of its rows
        grad_q = grad_k = none
        if needs_q:
            grad_q, inner = side_gradient(u, v, False)
        if needs_k:
            grad_k, inner = side_gradient(v, u, True)
    return grad_q, grad_k, inner.to(scale.dtype)


def bank_contrast(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_limit: Tensor | None,
    terms: Sequence[int],
    powers: Sequence[float],
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the twin. 2 products for every term; k is read as it lies, whatever its dtype, and never copied."""
    ids, limit = together(row_ids, column_ids), _narrow(row_limit)
    tile, row, precision = configs.bank(q), configs.row(), configs.kind(q.dtype)
    rows, dim = q.shape
    lse = q.new_empty(len(terms), rows, dtype=torch.float64)
    mean_key = q.new_empty(len(terms), rows, dim, dtype=torch.float32)
    found = lse.new_empty(3, 0)
    with torch.cuda.device_of(q):
        u = units(q, False, tile, row)
        row_blocks, out_blocks = triton.cdiv(rows, tile.block_m), u.depth // tile.block_out
        count, tiles = _splits_of_sums(tile, row_blocks * out_blocks, u, k.shape[0])
        shift, total = (q.new_empty(count, u.padded, dtype=torch.float32) for _ in range(2))
        split_key = q.new_empty(count, u.padded, u.depth, dtype=torch.float32)
        for term, power in enumerate(powers):
            watched = q.new_empty(3, count, u.padded, dtype=torch.float32) if statistics and term == 0 else None
            stream_bank[(row_blocks, count, out_blocks)](
                u.y, k, scale, *ids, limit, shift, total, split_key, watched, float(power),
                rows, k.shape[0], u.padded, dim, u.depth, k.stride(0), k.stride(1), tiles,
                **bank_constants(tile, precision, int(bool(terms[term] & SAME)), u.depth == dim),
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
            row_kernels.sums_to_lse(shift, total, lse[term], row)
            row_kernels.merge_keys[(triton.cdiv(rows, row.block_r),)](
                shift, total, split_key, mean_key[term], rows, u.padded, dim, u.depth, count,
                BLOCK_R=row.block_r, BLOCK_D=row.block_d, num_warps=row.warps,
            )  # fmt: skip
            if watched is not None:
                found = _statistics(watched, rows)
    return lse, mean_key, found


def bank_constants(tile: Tile, precision: str, term: int, even: bool) -> dict[str, Any]:
    """stream_bank's compile-time arguments."""
    return {**configs.tile_constants(tile, precision), "BLOCK_OUT": tile.block_out, "TERM": term, "EVEN": even}


def sigmoid_contrast(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_weight: Tensor,
    positive_weight: Tensor,
    gradient: bool,
    needs_q: bool,
    needs_k: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the twin. 1 product, 1 more for grad_q and 2 for grad_k, for D up to one output block."""
    ids = together(row_ids, column_ids)
    tile, row, precision = configs.sigmoid(q), configs.row(), configs.kind(q.dtype)
    lift = configs.lift(precision)
    bound = (row_weight.double() * positive_weight.double().abs().clamp_min(1)).abs().amax()
    bound = (bound + (bound == 0)).clamp_min(torch.finfo(torch.float32).tiny)
    weight, extra = (row_weight / bound).float().contiguous(), positive_weight.float().contiguous()
    none = q.new_empty(0)
    with torch.cuda.device_of(q):
        u, v = (units(x, False, tile, row) for x in (q, k))

        def stream(near: Units, far: Units, swapped: bool, wanted: bool) -> tuple[Tensor | None, Tensor]:
            """(the sums, the gradient)."""
            row_blocks, out_blocks = triton.cdiv(near.rows, tile.block_m), near.depth // tile.block_out
            if not wanted:
                out_blocks = 1
            count, tiles = _splits_of_sums(tile, row_blocks * out_blocks, near, far.rows)
            sums = None if swapped else q.new_empty(3, count, near.padded, dtype=torch.float32)
            du = q.new_empty(count, near.padded, near.depth, dtype=torch.float32) if wanted else None
            stream_sigmoid[(row_blocks, count, out_blocks)](
                near.y, far.y, scale, bias, *(ids[::-1] if swapped else ids), weight, extra, sums, du,
                near.rows, far.rows, near.padded, near.depth, tiles,
                **sigmoid_constants(tile, precision, swapped), num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
            if du is None:
                return sums, none
            return sums, row_kernels.gradient(near, far, du, None, bound, scale, 0, lift, row)[0]

        sums, grad_q = stream(u, v, False, gradient and needs_q)
        grad_k = stream(v, u, True, True)[1] if gradient and needs_k else none
    assert sums is not None
    loss, pull, inner = sums[:, :, : u.rows].sum(1, dtype=torch.float64)
    if not gradient:
        return loss, none, none, loss.new_empty(0), loss.new_empty(0)
    return loss, grad_q, grad_k, (row_weight * inner).sum(), (row_weight * pull).sum()


def sigmoid_constants(tile: Tile, precision: str, swapped: bool) -> dict[str, Any]:
    """stream_sigmoid's compile-time arguments."""
    return {
        **configs.tile_constants(tile, precision), "BLOCK_OUT": tile.block_out, "LIFT": configs.lift(precision),
        "SWAPPED": swapped,
    }  # fmt: skip


def neighbours(
    q: Tensor, k: Tensor | None, count: int, row_ids: Tensor | None, column_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As the twin, for counts up to configs.NEIGHBOURS_AT_MOST. 1 product; k is read as it lies."""
    ids = together(row_ids, row_ids if k is None else column_ids)
    tile, row, precision = configs.neighbours(q), configs.row(), configs.kind(q.dtype)
    best = max(2, triton.next_power_of_2(count))
    keys = q if k is None else k
    rows, columns = q.shape[0], keys.shape[0]
    with torch.cuda.device_of(q):
        u = units(q, False, tile, row)
        row_blocks = triton.cdiv(rows, tile.block_m)
        parts, tiles = splits(row_blocks, tile.programs, triton.cdiv(columns, tile.block_n))
        found = q.new_empty(parts, u.padded, best, dtype=torch.int64)
        stream_neighbours[(row_blocks, parts)](
            u.y, keys, *ids, found, rows, columns, u.padded, rows, u.dim, u.depth, *keys.stride(), tiles,
            **neighbours_constants(tile, precision, k is None, u.depth == u.dim, best),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    found = found[:, :rows].transpose(0, 1).reshape(rows, parts * best).topk(count, 1).values
    return from_keys(found)


def neighbours_constants(tile: Tile, precision: str, paired: bool, even: bool, best: int) -> dict[str, Any]:
    """stream_neighbours' compile-time arguments."""
    return {**configs.tile_constants(tile, precision), "PAIRED": paired, "EVEN": even, "BEST": best}
