"""Similarity family on GPUs, chunked: the library forms S = U Vᵀ a chunk at a time, and fused kernels read it once.

For large D, where no register tile feeds the matrix units: torch.mm writes R × C of S in float32, one kernel takes from
it what rows and columns need (or puts the weights of the pairs in its place), and torch.mm again makes gradients of
them. Per function, a GEMM being 2·M·N·D operations, with k None in brackets:

    contrast 1 (½), contrast_backward 3 (1½), bank_contrast 1 + terms, sigmoid_contrast 1 + 2, neighbours 1, hardest ½,
    triplets 1, triplets_backward 3

With k None only chunks on and right of the diagonal are formed: their rows and columns both count. Sums of rows and of
columns are merged chunk after chunk, in one order and without atomics, so bits are the same in every run.

Bytes per element of S, beside what the products read of U and V: forward 8; backward 8, and 8 (4 in half precision) for
one gradient, 12 (6) for two. Products and kernels take turns, so their times add. Predicted for forward + backward of
two sets of 65,536 rows, D = 1,024, two-way: 35 TFLOP and 120 GB (float32) or 94 GB, in ms, **predicted, not measured**
(NT-Xent: half of that; below D = 1,000 it is the bytes that count):

    float32 "highest"         bf16, fp16
    A100    H100    B200      A100    H100    B200
    1,870   560     450       160     64      27

    with 19.5 / 67 / 80 TFLOP/s in float32, 312 / 989 / 2,250 in half precision, and 2.0 / 3.35 / 8.0 TB/s.

Extra memory, in elements of float32: a chunk, R·C ≤ max(2^22, (M + N)·D) with R ≤ 4,096 (1,024 with k None) and
C ≤ 32,768, or where rows have to be whole, R·N ≤ max(256·N, 2·N·D); in half precision and for several terms one more;
the operands as they are normalised, (M + N)·D, and as much for gradients. S is never held.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

import torch
import triton
from torch import Tensor

from pyssl_fast.kernels.reference.similarity import COLUMNS, NEGATIVES, NORM_EPS, ROWS
from pyssl_fast.kernels.triton.configs import chunks as shape
from pyssl_fast.kernels.triton.similarity import chunked_kernels as kernels
from pyssl_fast.kernels.triton.similarity.pairs import from_keys, together

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")

_ROW = 64  # elements that rows of a chunk are aligned to: whole cache lines in half precision too
# Up to here `neighbours` keeps its list in registers; beyond, torch.topk selects.
FUSED_COUNT = 64


# ---- chunks of S ----------------------------------------------------------------------------------------------------


def _guarded(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Launch on the device of the first argument, a tensor."""

    @functools.wraps(function)
    def call(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        with torch.cuda.device_of(arguments[0]):
            return function(*arguments, **named)

    return call


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out = a·b in float32, summed in float32 whatever the type of a and b."""
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)  # interpreted kernels: torch has no such product on the CPU


def _accumulate(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a·b; out is float32."""
    if a.dtype == torch.float32:
        out.addmm_(a, b)
    else:  # torch 2.9's addmm takes no float32 beside half precision
        out += _product(a, b, torch.empty_like(out))


class _Chunk(NamedTuple):
    s: Tensor  # [height, width] float32, rows `stride` apart
    row: int  # of S, where it begins
    column: int
    u: Tensor  # [height, D], [width, D]: s is their product
    v: Tensor

    @property
    def place(self) -> dict[str, int]:
        height, width = self.s.shape
        return {
            "first_row": self.row, "first_column": self.column, "height": height, "width": width,
            "stride": self.s.stride(0),
        }  # fmt: skip

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.s.shape[0])

    @property
    def columns(self) -> slice:
        return slice(self.column, self.column + self.s.shape[1])

    @property
    def tiles(self) -> tuple[int, int]:
        return triton.cdiv(self.s.shape[0], shape().tile_m), triton.cdiv(self.s.shape[1], shape().tile_n)


def _chunk_shape(rows: int, columns: int, dim: int, symmetric: bool, whole_rows: bool) -> tuple[int, int]:
    """(R, C), as the top of this file says."""
    if whole_rows:
        return min(rows, max(shape().whole_rows, min(shape().rows, 2 * dim))), columns
    height = min(rows, shape().symmetric_rows if symmetric else shape().rows)
    width = max(shape().elements, (rows + columns) * dim) // height // _ROW * _ROW
    return height, min(columns, shape().columns, max(width, _ROW))


def _chunks(u: Tensor, v: Tensor | None, whole_rows: bool = False) -> Iterator[_Chunk]:
    """S = U Vᵀ, row of chunks after row of chunks, in one buffer that may be overwritten; v None: on and right of the
    diagonal."""
    columns = u if v is None else v
    height, width = _chunk_shape(u.shape[0], columns.shape[0], u.shape[1], v is None, whole_rows)
    buffer = u.new_empty(height, triton.cdiv(width, _ROW) * _ROW, dtype=torch.float32)
    for row in range(0, u.shape[0], height):
        left = u[row : row + height]
        for column in range(row if v is None else 0, columns.shape[0], width):
            right = columns[column : column + width].to(u.dtype)
            s = buffer[: left.shape[0], : right.shape[0]]
            yield _Chunk(_product(left, right.t(), s), row, column, left, right)


def _tiles() -> dict[str, int]:
    return {"BLOCK_M": shape().tile_m, "BLOCK_N": shape().tile_n, "num_warps": shape().warps}


def _diagonal(chunk: _Chunk) -> int:
    """With k None, how many of a chunk's first columns are rows of the same chunk too."""
    return min(max(chunk.row + chunk.s.shape[0] - chunk.column, 0), chunk.s.shape[1])


# ---- operands -------------------------------------------------------------------------------------------------------


class _Operand(NamedTuple):
    """Rows as the products take them: u = y·radius."""

    y: Tensor  # [M, D]
    radius: Tensor | None  # [M] float32
    length: Tensor | None  # [M] float64 what rows are divided by
    floored: Tensor | None  # [M] bool: the length is the floor


def _operand(x: Tensor, normalize: bool) -> _Operand:
    """In half precision y is x times a power of two, and what is left of its length is a float32 beside it: with u
    itself rounded to bf16, losses are wrong by 5e-3 at a temperature of 0.1."""
    if not normalize:
        return _Operand(x, None, None, None)
    norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    length = norm.clamp_min(NORM_EPS)
    mantissa, exponent = torch.frexp(length)  # ½ ≤ mantissa < 1
    y = x * torch.exp2(-exponent.double()).float()[:, None]
    if x.dtype == torch.float32:
        return _Operand(y.div_(mantissa.float()[:, None]), None, length, norm < NORM_EPS)
    return _Operand(y.to(x.dtype), mantissa.reciprocal().float(), length, norm < NORM_EPS)


def _zeros_like(x: Tensor) -> Tensor:
    """Where a gradient is summed."""
    return torch.zeros_like(x, dtype=torch.float32, memory_format=torch.contiguous_format)


def _slices(length: int) -> Iterator[slice]:
    """Of what is O(M·D), that much at a time: bounded temporaries."""
    return (slice(start, start + shape().rows) for start in range(0, length, shape().rows))


def _dots(a: _Operand, b: _Operand, rows: slice, others: slice) -> Tensor:
    """[n] float64 ⟨a_i, b_j⟩ of rows beside each other."""
    left, right = a.y[rows], b.y[others]
    dots = [(left[part].double() * right[part].double()).sum(1) for part in _slices(left.shape[0])]
    dot = torch.cat(dots) if dots else left.new_empty(0, dtype=torch.float64)
    if a.radius is not None and b.radius is not None:
        dot = dot * a.radius[rows] * b.radius[others]
    return dot


def _positives(rows: int, views: int, symmetric: bool) -> Iterator[tuple[int, slice, slice]]:
    """(which of the V−1, rows, columns): where the positives stand, in runs."""
    if not symmetric:
        if views:
            yield 0, slice(0, rows), slice(0, rows)
        return
    for view in range(1, views):
        shift = view * (rows // views)
        yield view - 1, slice(0, rows - shift), slice(shift, rows)
        yield view - 1, slice(rows - shift, rows), slice(0, shift)


def _unlift(grad: Tensor, x: _Operand, lift: float) -> None:
    """Takes from a product with weights what they were stored with: lift and the rows' own radius."""
    if x.radius is not None:
        grad.mul_((x.radius * lift).reciprocal()[:, None])
    elif lift != 1:
        grad.mul_(1 / lift)


def _through(x: _Operand, grad: Tensor, factor: Tensor, like: Tensor) -> Tensor:
    """factor·grad of u, led back through the normalisation. Uses grad up."""
    if x.length is None or x.floored is None:
        return grad.mul_(factor).to(like.dtype)
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    factors = (factor / x.length).float()[:, None]
    for part in _slices(grad.shape[0]):
        g, u = grad[part], x.y[part].float()
        if x.radius is not None:
            u = u * x.radius[part, None]
        radial = (u * g).sum(1, keepdim=True).masked_fill_(x.floored[part, None], 0)
        out[part] = g.addcmul_(u, radial, value=-1).mul_(factors[part])
    return out


# ---- terms ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Terms:
    """The terms of one direction, with what was found of them so far."""

    codes: tuple[int, ...]
    powers: tuple[float, ...]
    largest: Tensor  # [T, length] float32
    total: Tensor  # [T, length] float64, Σ exp(p·t − largest)

    @staticmethod
    def of(
        direction: int, like: Tensor, length: int, terms: Sequence[int], powers: Sequence[float], more: bool
    ) -> _Terms:
        """more: with statistics: largest t and Σ t, and their number."""
        chosen = [(term, float(p)) for term, p in zip(terms, powers, strict=True) if term & COLUMNS == direction]
        if more:
            chosen += [(direction | NEGATIVES | kernels.PLAIN, 1.0), (direction | NEGATIVES | kernels.NUMBER, 1.0)]
        return _Terms(
            tuple(term for term, _ in chosen),
            tuple(p for _, p in chosen),
            like.new_full((len(chosen), length), -torch.inf, dtype=torch.float32),
            like.new_zeros(len(chosen), length, dtype=torch.float64),
        )

    def merge(self, parts: Tensor, start: int) -> None:
        """parts: [T, 2, tiles, n] of n values from start on."""
        terms, _, tiles, length = parts.shape
        if not terms or not length:
            return
        plain = sum(1 << a for a, code in enumerate(self.codes) if code & (kernels.PLAIN | kernels.NUMBER))
        kernels.merge[(triton.cdiv(length, shape().merge), terms)](
            parts, self.largest[:, start:], self.total[:, start:], length, tiles, self.largest.shape[1], plain,
            BLOCK=shape().merge, BLOCK_PARTS=shape().merge_parts, num_warps=shape().warps,
        )  # fmt: skip

    def lse(self) -> Tensor:
        return self.largest.double() + self.total.log()

    def statistics(self) -> Tensor:
        """[3, length]: they stand last. A maximum swallows a NaN, a sum does not."""
        total = self.total[-2]
        return torch.stack((torch.where(total.isnan(), total, self.largest[-2].double()), total, self.total[-1]))


class _Context(NamedTuple):
    """What the kernels of `contrast` know of pairs, besides s."""

    scale: Tensor
    row_radius: Tensor | None
    column_radius: Tensor | None
    row_ids: Tensor | None
    column_ids: Tensor | None
    row_limit: Tensor | None
    column_limit: Tensor | None
    samples: int
    exclude: bool

    @staticmethod
    def of(
        left: _Operand, right: _Operand, scale: Tensor, row_ids: Tensor | None, column_ids: Tensor | None,
        row_limit: Tensor | None, column_limit: Tensor | None, views: int, symmetric: bool,
    ) -> _Context:  # fmt: skip
        if symmetric:
            column_ids = row_ids
        row_ids, column_ids = together(row_ids, column_ids)
        rows = left.y.shape[0]
        row_limit, column_limit = (None if x is None else x.float().contiguous() for x in (row_limit, column_limit))
        # With two sets, pair (i, i) is of one sample: equal modulo anything that no index reaches.
        samples = rows // max(views, 1) if symmetric else rows + right.y.shape[0]
        return _Context(
            scale.float(), left.radius, right.radius, row_ids, column_ids, row_limit, column_limit, samples,
            symmetric or views > 0,
        )  # fmt: skip

    @property
    def pointers(self) -> dict[str, Tensor | None]:
        return dict(zip(self._fields, self[:7], strict=False))


class _Weights(NamedTuple):
    """Of one direction's terms: w = weight·exp(p·t − shift)."""

    codes: tuple[int, ...]
    powers: tuple[float, ...]
    shift: Tensor  # [T, length] float32
    weight: Tensor  # [T, length] float32


def _sum_terms_of(chunk: _Chunk, context: _Context, by_row: _Terms, by_column: _Terms) -> tuple[Tensor, Tensor]:
    """([T, 2, column tiles, height], [T, 2, row tiles, width]) for `_Terms.merge`."""
    (height, width), (down, across) = chunk.s.shape, chunk.tiles
    row_parts = chunk.s.new_empty(len(by_row.codes), 2, across, height)
    column_parts = chunk.s.new_empty(len(by_column.codes), 2, down, width)
    kernels.sum_terms[chunk.tiles](
        chunk.s, **context.pointers, row_powers=by_row.powers, column_powers=by_column.powers, row_parts=row_parts,
        column_parts=column_parts, **chunk.place, samples=context.samples, ROW_TERMS=by_row.codes,
        COLUMN_TERMS=by_column.codes, EXCLUDE=context.exclude, **_tiles(),
    )  # fmt: skip
    return row_parts, column_parts


def _weigh_terms(
    chunk: _Chunk, w: Tensor, context: _Context, by_row: _Weights, by_column: _Weights, lift: float,
    scale_parts: Tensor | None, halved: int,
) -> None:  # fmt: skip
    kernels.weigh[chunk.tiles](
        chunk.s, w, **context.pointers, row_powers=by_row.powers, column_powers=by_column.powers,
        row_shift=by_row.shift, row_weight=by_row.weight, column_shift=by_column.shift, column_weight=by_column.weight,
        scale_parts=scale_parts, lift=lift, halved=halved, **chunk.place, rows=by_row.shift.shape[1],
        columns=by_column.shift.shape[1], samples=context.samples, ROW_TERMS=by_row.codes, COLUMN_TERMS=by_column.codes,
        EXCLUDE=context.exclude, **_tiles(),
    )  # fmt: skip


def _weight_buffer(chunk: _Chunk, held: list[Tensor], apart: bool = False) -> Tensor:
    """Where a chunk's weights go: into its own place, but for half precision or if s is needed once more."""
    if chunk.u.dtype == torch.float32 and not apart:
        return chunk.s
    height, width = chunk.s.shape
    if not held:  # the first chunk is the largest, with rows as far apart as in every other
        held.append(chunk.s.new_empty(height, chunk.s.stride(0), dtype=chunk.u.dtype))
    return held[0][:height, :width]


def _lift(dtype: torch.dtype, largest: float) -> float:
    """Weights of at most `largest` are stored times this: fp16 holds 2^15 down to 2^-14 with all digits."""
    return 2.0 ** (15 - max(0, int(largest)).bit_length()) if dtype == torch.float16 else 1.0


# ---- the functions: see their twins in kernels/reference/similarity.py ----------------------------------------------


@_guarded
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
    left = _operand(q, normalize)
    right = left if k is None else _operand(k, normalize)
    rows, columns = q.shape[0], right.y.shape[0]
    context = _Context.of(left, right, scale, row_ids, column_ids, row_limit, column_limit, views, k is None)
    by_row = _Terms.of(ROWS, q, rows, terms, powers, statistics)
    watch_columns = statistics and any(term & COLUMNS for term in terms)
    by_column = by_row if k is None else _Terms.of(COLUMNS, q, columns, terms, powers, watch_columns)
    for chunk in _chunks(left.y, None if k is None else right.y):
        row_parts, column_parts = _sum_terms_of(chunk, context, by_row, by_column)
        by_row.merge(row_parts, chunk.row)
        skip = _diagonal(chunk) if k is None else 0
        by_column.merge(column_parts[..., skip:].contiguous() if skip else column_parts, chunk.column + skip)

    of_rows, of_columns = iter(by_row.lse()), iter(by_column.lse())
    lse = torch.cat([next(of_columns if term & COLUMNS else of_rows) for term in terms])
    positive = lse.new_empty(max(views - 1, 0), rows)
    for n, i, j in _positives(rows, views, k is None):
        positive[n, i] = scale.double() * _dots(left, right, i, j)
    found = [lse.new_empty(3, 0)]
    if statistics:
        found += [by_row.statistics()] + ([by_column.statistics()] if watch_columns else [])
    return lse, positive, torch.cat(found, 1)


def _weights(
    direction: int, rows: int, columns: int, terms: Sequence[int], powers: Sequence[float], lse: Tensor, grad: Tensor
) -> _Weights:
    """What a term's gradient gives its pairs: p·grad·exp(p·t − lse). grad, of at most 1: float64 like lse."""
    length = columns if direction else rows
    none = lse == -torch.inf
    shift, grad = (x.masked_fill(none, 0).float() for x in (lse, grad))
    lengths = [columns if term & COLUMNS else rows for term in terms]
    chosen = [
        (term, float(power), power * g, x)
        for term, power, g, x in zip(terms, powers, grad.split(lengths), shift.split(lengths), strict=True)
        if term & COLUMNS == direction
    ]
    if not chosen:
        return _Weights((), (), shift.new_empty(0, length), shift.new_empty(0, length))
    codes, used, weight, at = zip(*chosen, strict=True)
    return _Weights(codes, used, torch.stack(at), torch.stack(weight))


def _add_positives(grad: Tensor, rows: slice, weight: Tensor, other: _Operand, columns: slice) -> None:
    """grad[rows] += weight·u[columns]"""
    if other.radius is not None:
        weight = weight * other.radius[columns]
    grad[rows].addcmul_(other.y[columns], weight.float()[:, None])


@_guarded
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
    left = _operand(q, normalize)
    right = left if k is None else _operand(k, normalize)
    symmetric = k is None
    rows, columns = q.shape[0], right.y.shape[0]
    context = _Context.of(left, right, scale, row_ids, column_ids, row_limit, column_limit, views, symmetric)
    # A loss scale may be beyond float16, and gradients of a well-trained batch below it.
    grad_lse, grad_positive = grad_lse.double(), grad_positive.double()
    size = torch.cat((grad_lse, grad_positive.reshape(-1))).abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    grad_lse, grad_positive = grad_lse / size, grad_positive / size
    of_rows = _weights(ROWS, rows, columns, terms, powers, lse, grad_lse)
    of_columns = of_rows if symmetric else _weights(COLUMNS, rows, columns, terms, powers, lse, grad_lse)
    lift = _lift(q.dtype, sum(powers) * (2 if symmetric else 1) * (4 if normalize else 1))

    grad_u = _zeros_like(q) if needs_q or symmetric else None
    grad_v = grad_u if symmetric else _zeros_like(right.y) if needs_k else None
    grad_scale = lse.new_zeros(())
    held: list[Tensor] = []
    for chunk in _chunks(left.y, None if symmetric else right.y):
        skip = _diagonal(chunk) if symmetric else 0  # these columns' share is in the rows' already
        w, parts = _weight_buffer(chunk, held), chunk.s.new_empty(chunk.tiles)
        _weigh_terms(chunk, w, context, of_rows, of_columns, lift, parts, skip)
        grad_scale += parts.sum(dtype=torch.float64)
        if grad_u is not None:
            _accumulate(grad_u[chunk.rows], w, chunk.v)
        if grad_v is not None:
            _accumulate(grad_v[chunk.columns][skip:], w[:, skip:].t(), chunk.u)

    for grad, x in ((grad_u, left), (grad_v, right))[: 1 if symmetric else 2]:
        if grad is not None:
            _unlift(grad, x, lift)
    for n, i, j in _positives(rows, views, symmetric):
        weight = grad_positive[n, i]
        grad_scale += (weight * _dots(left, right, i, j)).sum()
        if grad_u is not None:
            _add_positives(grad_u, i, weight, right, j)
        if grad_v is not None:
            _add_positives(grad_v, j, weight, left, i)
    factor = scale.double() * size
    none = q.new_empty(0)
    return (
        none if grad_u is None else _through(left, grad_u, factor, q),
        none if grad_v is None or k is None else _through(right, grad_v, factor, k),
        (size * grad_scale).to(scale.dtype),
    )


@_guarded
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
    """One pass over the keys for every 4,096 queries: sums so far shrink as larger logits appear."""
    left, right, rows = _operand(q, False), _operand(k, False), q.shape[0]
    context = _Context.of(left, right, scale, row_ids, column_ids, row_limit, None, 0, False)
    found = _Terms.of(ROWS, q, rows, terms, powers, statistics)
    nothing = _Terms.of(COLUMNS, q, 0, (), (), False)
    idle = _Weights((), (), nothing.largest, nothing.largest)
    lift = _lift(q.dtype, 1.0)
    mean_key = q.new_zeros(len(terms), *q.shape, dtype=torch.float32)
    held: list[Tensor] = []
    for chunk in _chunks(q, k):
        before = found.largest[: len(terms), chunk.rows].clone()
        found.merge(_sum_terms_of(chunk, context, found, nothing)[0], chunk.row)
        now = found.largest[: len(terms)]
        shrink = (before - now[:, chunk.rows]).exp().masked_fill_(before == -torch.inf, 0)
        shift = now.masked_fill(now == -torch.inf, 0)[:, None]  # [T, 1, M]
        one = torch.ones_like(shift[0])
        for n, (code, power) in enumerate(zip(terms, powers, strict=True)):
            w = _weight_buffer(chunk, held, apart=len(terms) > 1)
            _weigh_terms(chunk, w, context, _Weights((code,), (float(power),), shift[n], one), idle, lift, None, 0)
            acc = mean_key[n, chunk.rows]
            _accumulate(acc.mul_(shrink[n, :, None]), w, chunk.v)
    # A row with pairs has one of weight 1, so its total is no less.
    mean_key /= (found.total[: len(terms), :, None].clamp_min(1) * lift).float()
    lse = found.lse()[: len(terms)]
    return lse, mean_key, found.statistics() if statistics else lse.new_empty(3, 0)


@_guarded
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
    """The weights of the pairs go where their logits were: a gradient costs one product more, and S is formed once."""
    row_ids, column_ids = together(row_ids, column_ids)
    largest = (row_weight.double().abs() * positive_weight.double().abs().clamp_min(1)).max()
    size = largest.clamp_min(torch.finfo(torch.float32).tiny)
    row_weight = (row_weight.double() / size).float().contiguous()
    positive_weight = positive_weight.float().contiguous()
    scale_in, bias_in = scale.float(), bias.float()
    lift = _lift(q.dtype, 1.0)
    loss = q.new_zeros(q.shape[0], dtype=torch.float64)
    grad_q = _zeros_like(q) if gradient and needs_q else None
    grad_k = _zeros_like(k) if gradient and needs_k else None
    sums = loss.new_zeros(2)
    held: list[Tensor] = []
    for chunk in _chunks(q, k):
        w = _weight_buffer(chunk, held) if gradient else None
        losses = chunk.s.new_empty(chunk.tiles[1], chunk.s.shape[0])
        parts = chunk.s.new_empty(2, *chunk.tiles)
        kernels.sigmoid[chunk.tiles](
            chunk.s, w, scale_in, bias_in, row_ids, column_ids, row_weight, positive_weight, losses, parts, lift,
            **chunk.place, **_tiles(),
        )  # fmt: skip
        loss[chunk.rows] += losses.sum(0, dtype=torch.float64)
        if w is None:
            continue
        sums += parts.sum((1, 2), dtype=torch.float64)
        if grad_q is not None:
            _accumulate(grad_q[chunk.rows], w, chunk.v)
        if grad_k is not None:
            _accumulate(grad_k[chunk.columns], w.t(), chunk.u)
    none = q.new_empty(0)
    factor = scale.double() * size / lift
    sums = sums * size if gradient else loss.new_empty(2, 0)
    return (
        loss,
        none if grad_q is None else grad_q.mul_(factor).to(q.dtype),
        none if grad_k is None else grad_k.mul_(factor).to(k.dtype),
        sums[0],
        sums[1],
    )


@_guarded
def neighbours(
    q: Tensor, k: Tensor | None, count: int, row_ids: Tensor | None, column_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Whole rows with k None too: a row's list is one program's."""
    if k is None:
        column_ids = row_ids
    row_ids, column_ids = together(row_ids, column_ids)
    symmetric = k is None
    # Below every key, and all different, since one is evicted at a time.
    best = (torch.arange(count, device=q.device) + kernels.NO_KEY).repeat(q.shape[0], 1)
    held: list[Tensor] = []
    for chunk in _chunks(q, q if k is None else k):
        place = chunk.place
        height = place.pop("height")
        if count <= FUSED_COUNT:
            kernels.insert[(height,)](
                chunk.s, row_ids, column_ids, best, **place, count=count, SYMMETRIC=symmetric,
                COUNT=triton.next_power_of_2(count), BLOCK=shape().sweep, num_warps=shape().warps,
            )  # fmt: skip
            continue
        width = place["width"]
        if not held:
            held.append(best.new_empty(height, place["stride"]))
        keys = held[0][:height, :width]
        kernels.pack[(height, triton.cdiv(width, shape().sweep))](
            chunk.s, row_ids, column_ids, keys, **place, SYMMETRIC=symmetric, BLOCK=shape().sweep,
            num_warps=shape().warps,
        )  # fmt: skip
        found = keys.topk(min(count, width), sorted=False).values
        best[chunk.rows] = torch.cat((best[chunk.rows], found), 1).topk(count, sorted=False).values
    return from_keys(best.sort(dim=1, descending=True).values)


@_guarded
def hardest(q: Tensor, ids: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    rows = q.shape[0]
    ids, offset = ids.contiguous(), offset.float().contiguous()
    best = ids.new_full((2, rows), kernels.NO_KEY)
    for chunk in _chunks(q, None):
        (height, width), (down, across) = chunk.s.shape, chunk.tiles
        row_parts, column_parts = best.new_empty(2, across, height), best.new_empty(2, down, width)
        kernels.extremes[chunk.tiles](
            chunk.s, ids, offset, row_parts, column_parts, **chunk.place, samples=rows, **_tiles()
        )
        for part, parts in ((best[:, chunk.rows], row_parts), (best[:, chunk.columns], column_parts)):
            torch.maximum(part, parts.amax(1), out=part)
    index = from_keys(best)[1]
    return index[0], index[1]


def _distance_chunks(q: Tensor, euclidean: bool) -> Iterator[_Chunk]:
    """Chunks of whole rows that hold distances."""
    squares = torch.cat([q[part].float().square().sum(1) for part in _slices(q.shape[0])])
    for chunk in _chunks(q, q, whole_rows=True):
        place = chunk.place
        del place["first_column"]
        kernels.distances[chunk.tiles](chunk.s, squares, **place, EUCLIDEAN=euclidean, **_tiles())
        yield chunk


@_guarded
def triplets(q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool) -> tuple[Tensor, Tensor]:
    rows, ids = q.shape[0], ids.contiguous()
    loss, count = q.new_empty(2, rows, dtype=torch.float64)
    for chunk in _distance_chunks(q, euclidean):
        kernels.row_triplets[(chunk.s.shape[0],)](
            chunk.s, ids, float(margin), loss, count, None, None, chunk.row, rows, chunk.s.stride(0),
            SEMI_HARD=semi_hard, EUCLIDEAN=euclidean, BLOCK=shape().sweep, num_warps=shape().warps,
        )  # fmt: skip
    return loss, count


@_guarded
def triplets_backward(
    grad_loss: Tensor, q: Tensor, ids: Tensor, margin: float, euclidean: bool, semi_hard: bool
) -> Tensor:
    """Weights stay float32, and so do the products with them: counts over distances leave half precision's range."""
    rows, ids, wide = q.shape[0], ids.contiguous(), q.float()
    size = grad_loss.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    factors = (grad_loss.double() / size).float().contiguous()
    grad, total = torch.zeros_like(wide, memory_format=torch.contiguous_format), wide.new_zeros(rows)
    held: list[Tensor] = []
    for chunk in _distance_chunks(q, euclidean):
        height = chunk.s.shape[0]
        if not held:
            held.append(chunk.s.new_empty(height, chunk.s.stride(0)))
        w = held[0][:height, :rows].zero_()
        kernels.row_triplets[(height,)](
            chunk.s, ids, float(margin), None, None, w, factors, chunk.row, rows, chunk.s.stride(0),
            SEMI_HARD=semi_hard, EUCLIDEAN=euclidean, BLOCK=shape().sweep, num_warps=shape().warps,
        )  # fmt: skip
        grad[chunk.rows].addmm_(w, wide, alpha=-1)
        grad.addmm_(w.t(), wide[chunk.rows], alpha=-1)
        if euclidean:  # ∂d_ij of q_i: (q_i − q_j) / d_ij; of cosines −q_j
            total[chunk.rows] += w.sum(1)
            total += w.sum(0)
    if euclidean:
        grad.addcmul_(wide, total[:, None])
    return grad.mul_(size).to(q.dtype)
