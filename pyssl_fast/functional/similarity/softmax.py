"""What every softmax loss of the similarity family shares.

A loss describes the classes of its rows by `Negatives` (made by `fused` and `against_bank` from the operators, by
`explicit` from logits that are few) and by the logits of one or more positives. `finish` turns the two into the loss.
All of this is O(rows) work in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.functional.checks import (
    autocast_dtype,
    check_number,
    check_reduction,
    check_scalar,
    check_temperature,
    check_weight,
    check_within,
    readable,
    reduce,
)
from pyssl_fast.functional.similarity.groups import count_equal, sum_equal
from pyssl_fast.ops.similarity import COLUMNS, NEGATIVES, ROWS, statistics_dtype

NORM_EPS = 1e-12  # F.normalize's
ROUNDING = 1e-5  # of a similarity: a positive and a tile's entry are summed in different order

# A loss; with return_metrics=True the pair (loss, Metrics). `Any` spares callers a cast for either.
Result: TypeAlias = Tensor | Any


class Metrics(NamedTuple):
    """What training looks at, from the loss's own pass; no gradients. Similarities are cosines (⟨q, k⟩ where the loss
    does not normalise), that is logits times the temperature.

    accuracy: [] share of the rows whose best positive is at least as similar as every negative, up to rounding
    (top-1 retrieval); NaN if a row is.
    positive: [] mean similarity of the positives. negative: [] of the negatives; NaN if there are none.
    lse: log Σ exp over the logits of a row's positives and negatives, shaped as the loss with reduction="none".
    """

    accuracy: Tensor
    positive: Tensor
    negative: Tensor
    lse: Tensor


class Options(NamedTuple):
    """What every softmax loss takes, checked: see `check_options`."""

    weight: Tensor | None
    reduction: str
    label_smoothing: float
    debias: Tensor | None
    metrics: bool


class Negatives(NamedTuple):
    """The logits t of every row's negatives, reduced; float64.

    lse: [R] log Σ exp(t); −inf where there are none.
    number: [R], or one that holds for all; with ids 0 where neither smoothing nor debiasing asks for it.
    total: [R] Σ t with its gradient, where label smoothing asks for it.
    statistics: [3, R] largest t, Σ t and their number without gradient, where metrics or limits ask for it.
    rounding: by what share of them the t may be off.
    """

    lse: Tensor
    number: Tensor | int
    total: Tensor | None
    statistics: Tensor | None
    rounding: float = ROUNDING


# ---- arguments -------------------------------------------------------------------------------------------------------


def check_options(
    samples: int,
    like_name: str,
    like: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    return_metrics: bool = False,
) -> Options:
    """The options that all softmax losses share.

    Args:
        samples: N; like_name, like: the embeddings, for their device.
        weight: [N] of every sample. reduction="mean" is then Σ w·loss / Σ w.
        reduction: "mean", "sum" or "none".
        label_smoothing: ε of 0 to 1, as F.cross_entropy's over the row's classes (its positives and negatives).
        debias: τ⁺ of 0 to 1 (excluded), a number or [N]: the share of false negatives that the estimator of Chuang et
            al. 2020 takes out of the sum over the negatives.
        return_metrics: return (loss, Metrics).

    Raises:
        TypeError, ValueError: an argument that is none of these; label smoothing together with debias.
    """
    check_reduction(reduction)
    check_weight("weight", weight, samples, like_name, like)
    check_number("label_smoothing", label_smoothing, 0, 1)
    if isinstance(debias, Tensor) and debias.dim() == 1:
        check_weight("debias", debias, samples, like_name, like)
        if readable(debias) and not bool(((debias >= 0) & (debias < 1)).all()):
            raise ValueError(f"debias must be 0 to 1 (excluded) in every row; got {debias.detach().tolist()}")
    else:
        check_within("debias", debias, 0, 1, open_end=True)
    debiased = isinstance(debias, Tensor) or debias > 0
    if debiased and label_smoothing > 0:
        raise ValueError("label_smoothing and debias do not combine")
    share = None
    if isinstance(debias, Tensor):
        share = debias.to(like.device, torch.float64)
    elif debiased:
        share = torch.full((), debias, dtype=torch.float64, device=like.device)  # as_tensor would wait for a GPU
    return Options(weight, reduction, label_smoothing, share, return_metrics)


def inverse(temperature: float | Tensor, like: Tensor) -> Tensor:
    """1/τ, checked, as the operators take it: [] in statistics_dtype on the device of `like`."""
    check_temperature(temperature)
    dtype = statistics_dtype(like)
    if isinstance(temperature, Tensor):
        return temperature.to(like.device, dtype).reshape(()).reciprocal()
    return torch.full((), 1.0 / temperature, dtype=dtype, device=like.device)


def factor(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """A finite factor of the logits, checked, as the operators take it."""
    number = check_scalar(name, value)
    if number is not None and not abs(number) <= 1e30:
        raise ValueError(f"{name} must be finite, 1e30 in size at most; got {number}")
    dtype = statistics_dtype(like)
    if isinstance(value, Tensor):
        return value.to(like.device, dtype).reshape(())
    return torch.full((), value, dtype=dtype, device=like.device)


# ---- rows and their logits -------------------------------------------------------------------------------------------


def unit(x: Tensor, normalize: bool = True) -> Tensor:
    """The rows of x in float64, divided by their length."""
    return F.normalize(x.double(), dim=-1, eps=NORM_EPS) if normalize else x.double()


def unit_like(x: Tensor) -> Tensor:
    """The rows of x divided by their length, in x's dtype. float16 holds neither large lengths nor the ε."""
    return F.normalize(x.to(statistics_dtype(x)), dim=-1, eps=NORM_EPS).to(x.dtype)


def dots(a: Tensor, b: Tensor, normalize: bool = True) -> Tensor:
    """[R] float64: ⟨a_i, b_i⟩ of [R, D] rows."""
    return (unit(a, normalize) * unit(b, normalize)).sum(1)


def rounding(x: Tensor, normalize: bool = True) -> float:
    """By how much the cosine of two rows in a tile may differ from a positive's, of which nothing is rounded.

    Unit rows are rounded to the dtype that tiles are multiplied in, each entry by eps/2 at most.
    """
    dtype = x.dtype if x.dtype == torch.float64 else autocast_dtype(x) or x.dtype
    return max(ROUNDING, torch.finfo(dtype).eps) if normalize else ROUNDING


def fused(
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    options: Options,
    *,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    row_limit: Tensor | None = None,
    views: int = 0,
    normalize: bool = True,
    columns: bool = False,
    beta: float = 0.0,
) -> tuple[Negatives, Tensor]:
    """Rows against columns by the operator `contrast`: (negatives, [V-1, R] positives).

    Args:
        q, k, scale, row_ids, column_ids, row_limit, views, normalize: as the operator's. Rows that are another's
            positive, or k's row of the same number with two views, must have equal ids.
        columns: the columns' sums too, after the rows'; then R = M + N, else R = M.
        beta: weight the negatives by exp(β·t) (Robinson et al. 2021): the lse is of exp(t) averaged so, times count.
            Without columns.
    """
    watch = options.metrics or row_limit is not None
    terms, powers = [ROWS | NEGATIVES], [1.0]
    if columns:
        terms, powers = [ROWS | NEGATIVES, COLUMNS | NEGATIVES], [1.0, 1.0]
    elif beta:
        terms, powers = [ROWS | NEGATIVES, ROWS | NEGATIVES], [1.0 + beta, beta]
    lse, positive, statistics = torch.ops.pyssl_fast.contrast(
        q,
        k,
        scale,
        row_ids,
        column_ids,
        row_limit,
        None,
        terms,
        powers,
        views,
        normalize,
        watch,
        backend.choose("similarity", q),
    )
    if columns:
        positive = torch.cat((positive, positive), 1)
    count: Tensor | int
    counted = _counts(options) or beta > 0
    if row_limit is not None:
        count, total = statistics[2], None
    else:
        count, total = _class_sums(q, k, scale, row_ids, column_ids, views, normalize, options, counted)
        if columns:
            assert k is not None
            more, other = _class_sums(k, q, scale, column_ids, row_ids, views, normalize, options, counted)
            count = torch.cat((count, more)) if isinstance(count, Tensor) and isinstance(more, Tensor) else count
            total = None if total is None or other is None else torch.cat((total, other))
    if beta:  # log(N·Σ exp((1 + β)·t) / Σ exp(β·t))
        high, low = lse.view(2, -1)
        none = low == -torch.inf
        lse = (high.masked_fill(none, 0) - low.masked_fill(none, 0) + log_of(count, q)).masked_fill(none, -torch.inf)
    return Negatives(lse, count, total, statistics if watch else None, rounding(q, normalize)), positive


def against_bank(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    options: Options,
    *,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    unit_keys: bool = False,
) -> Negatives:
    """Normalised rows against negatives of their own.

    If k gets no gradient, q's is formed in the forward pass: k may be overwritten before backward.

    Args:
        unit_keys: whether the rows of k have length 1 already.
    """
    if k.requires_grad or not (torch.is_grad_enabled() and (q.requires_grad or scale.requires_grad)):
        u = unit_like(q) if unit_keys else q
        return fused(
            u,
            k.to(q.dtype),
            scale,
            options,
            row_ids=row_ids,
            column_ids=column_ids,
            normalize=not unit_keys,
        )[0]._replace(rounding=rounding(q))
    u, v = unit_like(q), k if unit_keys else unit_like(k)
    lse, _, statistics = torch.ops.pyssl_fast.bank_contrast(
        u,
        v,
        scale,
        row_ids,
        column_ids,
        None,
        [ROWS | NEGATIVES],
        [1.0],
        options.metrics,
        backend.choose("similarity", u),
    )
    count, total = _class_sums(u, v, scale, row_ids, column_ids, 0, False, options, _counts(options))
    return Negatives(lse[0], count, total, statistics if options.metrics else None, rounding(q))


def pair_logits(q: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """[B, K] float64 logits of normalised rows [B, D] and keys of their own [B, K, D]: smaller than the keys are."""
    with torch.autocast(q.device.type, enabled=False):  # sums in float32
        wide = keys.to(statistics_dtype(keys))
        s = torch.einsum("bd,bkd->bk", F.normalize(q.to(wide.dtype), dim=1, eps=NORM_EPS), wide)
        return scale.double() * (s / wide.norm(dim=2).clamp_min(NORM_EPS)).double()


def explicit(t: Tensor, keep: Tensor | None, options: Options) -> Negatives:
    """Of logits [R, K] in float64; those not kept are no negatives."""
    masked = t if keep is None else t.masked_fill(~keep, -torch.inf)
    kept = t if keep is None else t.masked_fill(~keep, 0)
    number = torch.full_like(t[:, 0], t.shape[1]) if keep is None else keep.sum(1).double()
    statistics = None
    if options.metrics:
        statistics = torch.stack((masked.detach().amax(1), kept.detach().sum(1), number))
    return Negatives(_logsumexp(masked, 1), number, kept.sum(1) if options.label_smoothing else None, statistics)


def join(a: Negatives, b: Negatives) -> Negatives:
    """The same rows with the negatives of both."""
    total = None if a.total is None or b.total is None else a.total + b.total
    statistics = None
    if a.statistics is not None and b.statistics is not None:
        largest = torch.maximum(a.statistics[0], b.statistics[0])
        statistics = torch.cat((largest[None], a.statistics[1:] + b.statistics[1:]))
    return Negatives(
        _logsumexp(torch.stack((a.lse, b.lse)), 0), a.number + b.number, total, statistics, max(a.rounding, b.rounding)
    )


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """torch.logsumexp, whose gradient is NaN where all are −inf; here it is 0."""
    none = (x == -torch.inf).all(dim)
    return x.masked_fill(none.unsqueeze(dim), 0).logsumexp(dim).masked_fill(none, -torch.inf)


def log_of(count: Tensor | int, like: Tensor) -> Tensor:
    """log of a number of rows, in float64 on the device of `like`."""
    if isinstance(count, Tensor):
        return count.double().log()
    return torch.full((), count, dtype=torch.float64, device=like.device).log()


# ---- sums over the classes: for label smoothing and debiasing --------------------------------------------------------


def _counts(options: Options) -> bool:
    """Whether the loss asks how many negatives a row has."""
    return options.label_smoothing > 0 or options.debias is not None


def _class_sums(
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    views: int,
    normalize: bool,
    options: Options,
    counted: bool,
) -> tuple[Tensor | int, Tensor | None]:
    """Of every row's negatives the number, and Σ t with its gradient: scale·⟨q_i, all keys − those that are none⟩.

    To count by ids takes a sort of all of them: unless `counted`, the number is then 0.
    """
    rows, columns = q.shape[0], q.shape[0] if k is None else k.shape[0]
    smoothing = options.label_smoothing > 0
    if row_ids is None or (k is not None and column_ids is None):
        excluded = max(views, 1) if k is None else views // 2
        if not smoothing:
            return columns - excluded, None
        u = unit(q, normalize)
        v = u if k is None else unit(k, normalize)
        if k is not None:
            own: Tensor | float = v[:rows] if views else 0.0
        else:
            own = u if not views else u.view(views, rows // views, -1).sum(0).repeat(views, 1)
        return columns - excluded, scale.double() * (u * (v.sum(0) - own)).sum(1)
    if not counted:
        return 0, None
    column_ids = row_ids if column_ids is None or k is None else column_ids
    number = (columns - count_equal(row_ids, column_ids)).double()
    if not smoothing:
        return number, None
    u = unit(q, normalize)
    v = u if k is None else unit(k, normalize)
    return number, scale.double() * (u * (v.sum(0) - sum_equal(row_ids, column_ids, v))).sum(1)


# ---- the loss --------------------------------------------------------------------------------------------------------


def finish(
    negatives: Negatives,
    positive: Tensor,
    scale: Tensor,
    options: Options,
    like: Tensor,
    groups: int = 1,
    *,
    decoupled: bool = False,
    positive_weight: Tensor | None = None,
) -> Result:
    """The loss of rows from their negatives and positives.

    loss = log(Σ_negatives exp(t) + Σ_positives exp(t)) − mean of the positives' t; with one positive softplus(lse − t),
    in which nothing cancels.

    Args:
        negatives: of R rows.
        positive: [P, R].
        scale: [] of the logits.
        options: as checked; weight and debias [N].
        like: the embeddings; the loss has its statistics_dtype.
        groups: G of R = G·N rows, one group after the other; reduction="none" gives [G, N], or [N] if 1.
        decoupled: without the positives in the sum (Yeh et al. 2022).
        positive_weight: [R] factor of the positives' logit; decoupled alone.
    """
    samples = positive.shape[1] // groups
    lse = negatives.lse if options.debias is None else debiased(negatives, positive, scale, options.debias, groups)
    first, mean = positive[0], positive.mean(0)
    smooth: Tensor | float = 0.0
    if options.label_smoothing:
        assert negatives.total is not None
        classes = (negatives.total + positive.sum(0)) / (negatives.number + positive.shape[0])
        smooth = options.label_smoothing * (mean - classes)
    if decoupled:
        loss = lse - (mean - smooth if positive_weight is None else positive_weight * (mean - smooth))
    elif positive.shape[0] == 1:
        loss = softplus(lse - first) + smooth
    else:
        loss = softplus(_logsumexp(torch.cat((lse[None], positive[1:])), 0) - first) + (first - mean) + smooth
    shape = (samples,) if groups == 1 else (groups, samples)
    dtype = statistics_dtype(like)
    loss = reduce(loss.view(shape), options.reduction, options.weight).to(dtype)
    return (loss, _metrics(negatives, positive.detach(), scale, shape, dtype)) if options.metrics else loss


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return F.softplus(x, threshold=50)  # its default of 20 is off by 2e-9


def debiased(negatives: Negatives, positive: Tensor, scale: Tensor, share: Tensor, groups: int) -> Tensor:
    """log of max((Σ exp(t) − τ⁺·N·mean exp(t⁺)) / (1 − τ⁺), N·e^(−1/τ)), N negatives: Chuang et al. 2020."""
    if share.dim():
        share = share.repeat(groups)
    number = log_of(negatives.number, positive)
    mean = positive.logsumexp(0) - log_of(positive.shape[0], positive)
    x = share.log() + number + mean - negatives.lse  # log of what is taken out, over the sum
    none = negatives.lse == -torch.inf
    gone = (x >= 0) | none  # NaN is not, and goes on
    rest = negatives.lse + torch.log(-torch.expm1(x.masked_fill(gone, -1.0))) - torch.log1p(-share)
    bound = (number - scale.double().abs()).masked_fill(none, -torch.inf)
    return torch.maximum(rest.masked_fill(gone, -torch.inf), bound)


def _metrics(
    negatives: Negatives, positive: Tensor, scale: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> Metrics:
    assert negatives.statistics is not None
    largest, total, number = negatives.statistics
    factor = scale.detach().double()
    best = positive.amax(0)
    hit = best >= largest - negatives.rounding * largest.abs()
    accuracy = hit.double().masked_fill(best.isnan() | negatives.lse.detach().isnan(), torch.nan)
    return Metrics(
        accuracy.to(dtype).mean(),
        (positive.mean() / factor).to(dtype),
        (total.sum() / number.sum() / factor).to(dtype),
        _logsumexp(torch.cat((negatives.lse.detach()[None], positive)), 0).view(shape).to(dtype),
    )
