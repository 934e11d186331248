"""The similarity family against its float64 twin, whoever computes it: inputs, cases and comparisons.

For every operator a case says the arguments, `run_*` runs a backend's functions on them, and `check_*` compares with
the twin under the error contract; eager is the twin in the input's dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyssl_fast.kernels.reference import similarity as reference
from pyssl_fast.kernels.reference.similarity import COLUMNS, NEGATIVES, ROWS, SAME
from tests.contract import assert_within_contract

Results = dict[str, Tensor]


def embeddings(samples: int, views: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """[views·samples, dim] views that resemble each other, with one pair of samples that nearly coincide."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(samples, dim, generator=generator)
    if samples > 2:
        shared[1] = shared[0] + 0.1 * shared[2]
    own = torch.randn(views, samples, dim, generator=generator)
    return (0.7 * shared + own).reshape(-1, dim).to(dtype)


def gradients(*shape: int, seed: int = 1) -> Tensor:
    """float64 incoming gradients of both signs."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 0.5


def group_ids(length: int, groups: int, seed: int = 2) -> Tensor:
    """[length] int64 that differ in their upper halves alone, some negative."""
    return (torch.randint(groups, (length,), generator=torch.Generator().manual_seed(seed)) - 1) << 32


def limits(t: Tensor) -> Tensor:
    """[M] a limit in every row of t [M, N] float64, amid a wide gap: no pair moves past it by rounding."""
    values = t.sort(1).values
    gaps = values.diff(dim=1)
    gaps[:, : gaps.shape[1] // 2] *= 0.01  # rather among the larger ones
    at = gaps.argmax(1, keepdim=True)
    return ((values.gather(1, at) + values.gather(1, at + 1)) / 2)[:, 0]


def _in(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """Floating-point tensors in dtype (scales, weights and limits at least in float32), others as they are."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [x if x is None or not x.is_floating_point() else x.to(dtype if x.dim() == 2 else wide) for x in tensors]


def compare(what: str, dtype: torch.dtype, ours: Results, truth: Results, eager: Results) -> None:
    """Every result within the contract, and finite exactly where the truth is."""
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        assert_within_contract(value, truth[name], eager[name], dtype, f"{name} of {what}")


# ---- contrast -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Arguments of `contrast`. columns None: symmetric. groups: how many ids there are, 0 for no ids."""

    rows: int = 19
    columns: int | None = None
    dim: int = 20
    terms: tuple[int, ...] = (ROWS | NEGATIVES,)
    powers: tuple[float, ...] = (1.0,)
    views: int = 2
    normalize: bool = True
    groups: int = 0
    limited: bool = False
    statistics: bool = False
    temperature: float = 0.1

    @property
    def both(self) -> bool:
        return any(term & COLUMNS for term in self.terms)


def nt_xent(samples: int, views: int, dim: int, temperature: float = 0.1) -> Contrast:
    """The terms of NT-Xent (SimCLR)."""
    return Contrast(rows=samples * views, dim=dim, views=views, temperature=temperature)


_CLIP: dict[str, Any] = {
    "rows": 23, "columns": 23, "normalize": False, "terms": (ROWS | NEGATIVES, COLUMNS | NEGATIVES),
    "powers": (1.0, 1.0),
}  # fmt: skip
_SUPERVISED: dict[str, Any] = {"terms": (ROWS | NEGATIVES, ROWS | SAME), "powers": (1.0, 1.0), "groups": 5}
CONTRASTS = {
    "NT-Xent": Contrast(rows=38),
    "NT-Xent, three views": Contrast(rows=39, views=3),
    "NT-Xent, shift per row": Contrast(rows=38, temperature=0.01),
    "negative temperature": Contrast(rows=38, temperature=-0.01),
    "rows with each other, no positives": Contrast(rows=21, views=0),
    "not normalised": Contrast(rows=38, normalize=False, temperature=0.5),
    "one side": Contrast(rows=19, columns=23, normalize=False),
    "CLIP": Contrast(**_CLIP),
    "CLIP, sharp": Contrast(**{**_CLIP, "temperature": 0.005, "normalize": True}),
    "CLIP, more columns": Contrast(**{**_CLIP, "columns": 41, "normalize": True}),
    "CLIP, no positives": Contrast(**{**_CLIP, "views": 0, "columns": 9}),
    "CLIP, ids": Contrast(**{**_CLIP, "groups": 9}),
    "limits": Contrast(**{**_CLIP, "limited": True}),
    "limits, normalised": Contrast(**{**_CLIP, "columns": 30, "normalize": True, "limited": True, "groups": 9}),
    "supervised": Contrast(rows=38, **_SUPERVISED),
    "supervised, sharp": Contrast(rows=38, temperature=0.01, **_SUPERVISED),
    "supervised, one id": Contrast(rows=20, **{**_SUPERVISED, "groups": 1}),  # rows without negatives
    "SAME in both directions": Contrast(
        rows=23, columns=29, normalize=False, groups=4,
        terms=(ROWS | SAME, COLUMNS | SAME, ROWS | NEGATIVES, COLUMNS | NEGATIVES), powers=(1.0, 1.0, 1.0, 1.0),
    ),
    "hard negatives": Contrast(rows=38, terms=(ROWS, ROWS), powers=(1.5, 0.5), temperature=0.5),
    "hard negatives, sharp": Contrast(rows=38, terms=(ROWS, ROWS), powers=(2.0, 1.0), temperature=0.03),
    "three terms of rows": Contrast(
        rows=38, terms=(ROWS, ROWS | SAME, ROWS), powers=(1.0, 1.0, 2.0), groups=6, temperature=0.2
    ),
    "statistics": Contrast(rows=38, statistics=True),
    "statistics, everything": Contrast(
        rows=23, columns=31, terms=(ROWS, ROWS | SAME, COLUMNS, COLUMNS | SAME), powers=(1.0, 2.0, 1.5, 1.0), groups=7,
        limited=True, statistics=True,
    ),
}  # fmt: skip


def contrast_inputs(case: Contrast, dtype: torch.dtype = torch.float32) -> tuple[Tensor | None, ...]:
    """(q, k, scale, row_ids, column_ids, row_limit, column_limit)."""
    scale = torch.tensor(1 / case.temperature)
    k = column_limit = column_ids = row_limit = None
    if case.columns is None:
        q = embeddings(case.rows // max(case.views, 1), max(case.views, 1), case.dim)
    else:
        q, k = embeddings(max(case.rows, case.columns), 2, case.dim).chunk(2)
        q, k = q[: case.rows], k[: case.columns]
    if not case.normalize:
        q, k = (None if x is None else x / (1.3 * case.dim**0.5) for x in (q, k))
    q, k = _in(dtype, q, k)
    row_ids = group_ids(case.rows, case.groups) if case.groups else None
    if k is not None and case.groups:
        column_ids = group_ids(k.shape[0], case.groups, seed=3)
    if k is not None and case.limited:
        u, v = (reference._unit(x.double(), case.normalize) for x in (q, k))
        t = scale.double() * u @ v.T
        row_limit, column_limit = limits(t), limits(t.T) if case.both else None
    return q, k, scale, row_ids, column_ids, row_limit, column_limit


def run_contrast(
    kernels: ModuleType,
    inputs: tuple[Tensor | None, ...],
    case: Contrast,
    grad: Callable[..., Tensor] = gradients,
    needs: tuple[bool, bool] = (True, True),
) -> Results:
    """What a backend's contrast and contrast_backward give; `grad(*shape)` makes the incoming gradients."""
    rest = (list(case.terms), list(case.powers), case.views, case.normalize)
    lse, positive, statistics = kernels.contrast(*inputs, *rest, case.statistics)
    assert lse.dtype == positive.dtype == statistics.dtype == torch.float64
    grad_lse, grad_positive = grad(*lse.shape).to(lse.device), grad(*positive.shape).to(lse.device)
    q, k, scale = inputs[:3]
    grad_q, grad_k, grad_scale = kernels.contrast_backward(
        grad_lse, grad_positive, *inputs, lse, *rest, needs[0] or k is None, needs[1] and k is not None
    )
    assert grad_q.dtype == q.dtype and grad_scale.dtype == scale.dtype and (k is None or grad_k.dtype == k.dtype)
    largest, total, count = statistics
    return {
        "lse": lse, "positive": positive, "largest": largest, "total": total, "count": count,
        "grad_q": grad_q, "grad_k": grad_k, "grad_scale": grad_scale,
    }  # fmt: skip


def check_contrast(
    kernels: ModuleType,
    case: Contrast,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    inputs: tuple[Tensor | None, ...] | None = None,
    **options: Any,
) -> Results:
    """`options` as run_contrast's. Returns what the kernels gave."""
    inputs = contrast_inputs(case, dtype) if inputs is None else inputs
    inputs = tuple(None if x is None else x.to(device) for x in inputs)
    ours = run_contrast(kernels, inputs, case, **options)
    truth = run_contrast(reference, (*_in(torch.float64, *inputs),), case, **options)
    eager = run_contrast(reference, (*_in(dtype, *inputs),), case, **options)
    compare(str(case), dtype, ours, truth, eager)
    return ours


def check_scaled(kernels: ModuleType, case: Contrast, size: float, grad: Callable[..., Tensor] = gradients) -> None:
    """Gradients for incoming ones of `size`, compared after division by it: the absolute allowance would hide them."""
    inputs = contrast_inputs(case)
    ours, truth, eager = (
        run_contrast(backend, (*_in(dtype, *inputs),), case, lambda *shape: grad(*shape) * size)
        for backend, dtype in ((kernels, torch.float32), (reference, torch.float64), (reference, torch.float32))
    )
    for name in ("grad_q", "grad_k", "grad_scale"):
        scaled = (x[name].double() / size for x in (ours, truth, eager))
        assert_within_contract(*scaled, torch.float32, f"{name} / {size} of {case}")


# ---- bank_contrast --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bank:
    """Arguments of `bank_contrast`."""

    rows: int = 19
    columns: int = 57
    dim: int = 20
    terms: tuple[int, ...] = (ROWS | NEGATIVES,)
    powers: tuple[float, ...] = (1.0,)
    groups: int = 0
    limited: bool = False
    statistics: bool = False
    temperature: float = 0.1
    key_dtype: torch.dtype | None = None
    layout: str = "rows"  # or "columns": as MoCo holds its queue; or "strided"


BANKS = {
    "MoCo": Bank(),
    "MoCo's queue": Bank(layout="columns"),
    "sharp": Bank(temperature=0.005, layout="strided"),
    "negative temperature": Bank(temperature=-0.05),
    "one query": Bank(rows=1, columns=130),
    "one key": Bank(columns=1),
    "ids": Bank(groups=5),
    "one id": Bank(groups=1),  # no negatives at all
    "limits and statistics": Bank(groups=5, limited=True, statistics=True),
    "same and powers": Bank(terms=(ROWS, ROWS | SAME, ROWS), powers=(1.5, 1.0, 0.5), groups=5, statistics=True),
    "keys in float32": Bank(key_dtype=torch.float32),
    "keys in half precision": Bank(key_dtype=torch.float16),
}


def _layout(x: Tensor, layout: str) -> Tensor:
    if layout == "columns":
        return x.t().contiguous().t()
    if layout == "strided":
        return x.repeat_interleave(2, 1).repeat_interleave(3, 0)[::3, ::2]
    return x


def bank_inputs(case: Bank, dtype: torch.dtype = torch.float32) -> tuple[Tensor | None, ...]:
    """(q, k, scale, row_ids, column_ids, row_limit)."""
    q, k = torch.nn.functional.normalize(embeddings(max(case.rows, case.columns), 2, case.dim), dim=1).chunk(2)
    q, k = q[: case.rows].to(dtype), _layout(k[: case.columns].to(case.key_dtype or dtype), case.layout)
    scale = torch.tensor(1 / case.temperature)
    ids = [group_ids(n, case.groups, seed=s) if case.groups else None for n, s in ((len(q), 2), (len(k), 3))]
    return q, k, scale, *ids, limits(scale.double() * q.double() @ k.double().T) if case.limited else None


def run_bank(kernels: ModuleType, inputs: tuple[Tensor | None, ...], case: Bank) -> Results:
    lse, mean_key, statistics = kernels.bank_contrast(*inputs, list(case.terms), list(case.powers), case.statistics)
    assert lse.dtype == statistics.dtype == torch.float64
    largest, total, count = statistics
    return {"lse": lse, "mean_key": mean_key, "largest": largest, "total": total, "count": count}


def check_bank(kernels: ModuleType, case: Bank, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Results:
    inputs = tuple(None if x is None else x.to(device) for x in bank_inputs(case, dtype))
    ours = run_bank(kernels, inputs, case)
    truth = run_bank(reference, (*_in(torch.float64, *inputs),), case)
    eager = run_bank(reference, (*_in(dtype, *inputs),), case)
    compare(str(case), dtype, ours, truth, eager)
    return ours


# ---- sigmoid_contrast -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """Arguments of `sigmoid_contrast`."""

    rows: int = 23
    columns: int = 23
    dim: int = 20
    groups: int = 0
    scale: float = 10.0
    bias: float = -10.0
    gradient: bool = True
    needs: tuple[bool, bool] = (True, True)


SIGMOIDS = {
    "SigLIP": Sigmoid(),
    "far from its start": Sigmoid(scale=100.0, bias=-3.0),
    "logits of hundreds": Sigmoid(scale=300.0, bias=5.0),
    "more rows": Sigmoid(rows=40),
    "more columns": Sigmoid(columns=50),
    "ids": Sigmoid(columns=31, groups=5),
    "value alone": Sigmoid(gradient=False),
    "one side": Sigmoid(needs=(True, False)),
    "the other side": Sigmoid(needs=(False, True)),
    "scale and bias alone": Sigmoid(needs=(False, False)),
}


def sigmoid_inputs(case: Sigmoid, dtype: torch.dtype = torch.float32) -> tuple[Tensor | None, ...]:
    """(q, k, scale, bias, row_ids, column_ids, row_weight, positive_weight)."""
    q, k = torch.nn.functional.normalize(embeddings(max(case.rows, case.columns), 2, case.dim), dim=1).chunk(2)
    q, k = q[: case.rows].to(dtype), k[: case.columns].to(dtype)
    ids = [group_ids(n, case.groups, seed=s) if case.groups else None for n, s in ((len(q), 2), (len(k), 3))]
    weights = [gradients(case.rows, seed=4), 1 + 2 * gradients(case.rows, seed=5).abs()]
    return q, k, torch.tensor(case.scale), torch.tensor(case.bias), *ids, *weights


def run_sigmoid(kernels: ModuleType, inputs: tuple[Tensor | None, ...], case: Sigmoid) -> Results:
    results = kernels.sigmoid_contrast(*inputs, case.gradient, *case.needs)
    assert results[0].dtype == results[3].dtype == results[4].dtype == torch.float64
    return dict(zip(("loss", "grad_q", "grad_k", "grad_scale", "grad_bias"), results, strict=True))


def check_sigmoid(
    kernels: ModuleType, case: Sigmoid, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Results:
    inputs = tuple(None if x is None else x.to(device) for x in sigmoid_inputs(case, dtype))
    ours = run_sigmoid(kernels, inputs, case)
    truth = run_sigmoid(reference, (*_in(torch.float64, *inputs),), case)
    eager = run_sigmoid(reference, (*_in(dtype, *inputs),), case)
    compare(str(case), dtype, ours, truth, eager)
    return ours


# ---- neighbours, hardest: an index is right if what it points to is -------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Arguments of `neighbours`. columns None: the rows among themselves."""

    rows: int = 19
    columns: int | None = 57
    dim: int = 20
    count: int = 1
    groups: int = 0
    layout: str = "rows"


NEIGHBOURS = {
    "NNCLR": Neighbours(),
    "five": Neighbours(count=5, layout="columns"),
    "more than fit in registers": Neighbours(count=40),
    "among themselves": Neighbours(rows=37, columns=None, count=3),
    "ids": Neighbours(groups=4, count=4),
    "ids among themselves": Neighbours(rows=37, columns=None, groups=4, count=2),
    "fewer columns than asked for": Neighbours(columns=3, count=7),
    "none": Neighbours(columns=9, count=2, groups=1),
    "one row": Neighbours(rows=1, columns=None, count=2),
}


def neighbours_inputs(case: Neighbours, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """(q, k, count, row_ids, column_ids)."""
    q = torch.nn.functional.normalize(embeddings(max(case.rows, case.columns or 0), 2, case.dim), dim=1).to(dtype)
    q, k = q.chunk(2)
    q, k = q[: case.rows], None if case.columns is None else _layout(k[: case.columns], case.layout)
    row_ids = group_ids(len(q), case.groups) if case.groups else None
    return q, k, case.count, row_ids, group_ids(len(k), case.groups, seed=3) if case.groups and k is not None else None


def check_neighbours(
    kernels: ModuleType, case: Neighbours, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> None:
    inputs = tuple(x.to(device) if isinstance(x, Tensor) else x for x in neighbours_inputs(case, dtype))
    q, k, count, row_ids, column_ids = inputs
    similarity, index = kernels.neighbours(*inputs)
    assert similarity.dtype == torch.float32 and index.dtype == torch.int64
    assert similarity.shape == index.shape == (len(q), count)
    wide = reference.neighbours(q.double(), None if k is None else k.double(), count, row_ids, column_ids)[0]
    narrow = reference.neighbours(*inputs)[0]
    assert_within_contract(similarity, wide, narrow, dtype, f"similarity of {case}")
    assert torch.equal(index == -1, similarity == -torch.inf)
    for row, found in enumerate(index):
        found = found[found >= 0]
        assert len(found.unique()) == len(found), f"row {row} of {case}: {found.tolist()}"
        if k is None:
            assert not (found == row).any()
        if row_ids is not None:
            assert not ((row_ids if column_ids is None else column_ids)[found] == row_ids[row]).any()
    v = q if k is None else k
    there = (q.double()[:, None] * v.double()[index.clamp_min(0)]).sum(2).masked_fill(index == -1, -torch.inf)
    assert_within_contract(there, wide, narrow, dtype, f"what index points to, of {case}")


@dataclasses.dataclass(frozen=True)
class Triplets:
    """Arguments of `hardest`, `triplets` and `triplets_backward`."""

    rows: int = 26
    dim: int = 20
    groups: int = 5
    margin: float = 0.2
    euclidean: bool = True
    semi_hard: bool = False


TRIPLETS = {
    "all": Triplets(),
    "cosine": Triplets(euclidean=False),
    "semi-hard": Triplets(semi_hard=True),
    "semi-hard, cosine": Triplets(semi_hard=True, euclidean=False, margin=0.5),
    "one id": Triplets(groups=1),  # no negatives
    "an id for each": Triplets(rows=11, groups=100000),  # no positives
    "margin zero": Triplets(margin=0.0),
    "large margin": Triplets(margin=5.0),
    "two rows": Triplets(rows=2, groups=1),
}


def triplets_inputs(case: Triplets, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(q, ids)."""
    q = torch.nn.functional.normalize(embeddings(case.rows, 1, case.dim), dim=1)
    return q.to(dtype), group_ids(case.rows, case.groups)


def check_hardest(kernels: ModuleType, case: Triplets, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
    q, ids = (x.to(device) for x in triplets_inputs(case, dtype))
    offset = -0.5 * q.double().square().sum(1) if case.euclidean else torch.zeros(len(q), device=q.device)
    offset = offset.float() + (0 if case.euclidean else 0.1 * gradients(len(q)).float().to(device))
    s = q.double() @ q.double().T + offset.double()
    results = [f(q, ids, offset) for f in (kernels.hardest, reference.hardest)]
    exact = reference.hardest(q.double(), ids, offset.double())
    for what, mine, theirs, best in zip(("negative", "positive"), *results, exact, strict=True):
        assert mine.dtype == torch.int64 and torch.equal(mine == -1, best == -1), f"{what} of {case}"
        values = [
            s.gather(1, x.clamp_min(0)[:, None])[:, 0].masked_fill(x == -1, -torch.inf) for x in (mine, best, theirs)
        ]
        assert_within_contract(*values, dtype, f"{what} of {case}")
        kind = (ids[mine.clamp_min(0)] == ids) == (what == "positive")
        assert (kind | (mine == -1)).all() and (mine != torch.arange(len(q), device=q.device)).all()


def check_triplets(
    kernels: ModuleType, case: Triplets, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Results:
    q, ids = (x.to(device) for x in triplets_inputs(case, dtype))
    rest = (ids, case.margin, case.euclidean, case.semi_hard)

    def run(backend: ModuleType, q: Tensor) -> Results:
        loss, count = backend.triplets(q, *rest)
        assert loss.dtype == count.dtype == torch.float64
        grad = backend.triplets_backward(gradients(len(q)).to(q.device), q, *rest)
        return {"loss": loss, "count": count, "grad_q": grad}

    ours = run(kernels, q)
    compare(str(case), dtype, ours, run(reference, q.double()), run(reference, q))
    assert ours["grad_q"].dtype == dtype
    return ours
