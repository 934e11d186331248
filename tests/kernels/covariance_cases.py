"""The covariance family against its float64 twin, whoever computes it: inputs, cases and comparisons.

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

from pyssl_fast.kernels.reference import covariance as reference
from pyssl_fast.ops.covariance import cross_shapes, gram_shapes
from tests.contract import assert_within_contract

Results = dict[str, Tensor]
Views = tuple[Tensor, Tensor | None]


def gradients(*shape: int, seed: int = 1) -> Tensor:
    """float64 incoming gradients of both signs."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 0.5


@dataclasses.dataclass(frozen=True)
class Columns:
    """What x and y are made of.

    Args:
        positions: None for x [N, D], else of x [N, E, D].
        views: 1 for no y.
        mean: of every column; deviations are about 1.
        scaled: what column 1 is multiplied by.
        tiny: columns 0, 3, 6, … deviate by 1e-6.
        constant: columns 2, 5, 8, … are 0.25.
        layout: "dense"; "rows" (strides of rows and positions are others than their shapes'), "first" (positions come
            before samples), "columns" (the last dimension has a stride), "expanded" (all samples are one).
    """

    samples: int = 19
    dim: int = 20
    positions: int | None = None
    views: int = 2
    mean: float = 0.5
    scaled: float = 1.0
    tiny: bool = False
    constant: bool = False
    layout: str = "dense"
    eps: float = 1e-5  # of cross_correlation alone


def _layout(x: Tensor, layout: str) -> Tensor:
    """x [N, E, D] with other strides."""
    if layout == "rows":
        return x.repeat_interleave(2, 1).repeat_interleave(3, 0).repeat(1, 1, 2)[::3, ::2, : x.shape[2]]
    if layout == "first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "columns":
        return x.repeat_interleave(2, 2)[:, :, ::2]
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return x


def inputs(case: Columns, dtype: torch.dtype = torch.float32, seed: int = 0) -> Views:
    """(x, y) that resemble each other, of correlated columns."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.samples, case.positions or 1, case.dim)
    shared = torch.randn(shape, generator=generator)
    views: list[Tensor | None] = [None, None]
    for view in range(case.views):
        x = shared + 0.7 * torch.randn(shape, generator=generator)
        x = x + 0.5 * x.roll(1, 2)
        if case.tiny:
            x[..., ::3] *= 1e-6
        if case.dim > 1:
            x[..., 1] *= case.scaled
        x += case.mean * torch.linspace(1, 2, case.dim) if not case.tiny else 0
        if case.constant:
            x[..., 2::3] = 0.25
        x = _layout(x.to(dtype), case.layout)
        views[view] = x if case.positions else x[:, 0]
    assert views[0] is not None
    return views[0], views[1]


def _in(dtype: torch.dtype, views: Views) -> Views:
    x, y = views
    return x.to(dtype), None if y is None else y.to(dtype)


def compare(what: str, dtype: torch.dtype, ours: Results, truth: Results, eager: Results) -> None:
    """Every result within the contract, and finite exactly where the truth is."""
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        assert_within_contract(value, truth[name], eager[name], dtype, f"{name} of {what}")


_NUMERICS: dict[str, Columns] = {
    "rows": Columns(samples=11, dim=37),
    "square": Columns(samples=20, dim=20),
    "columns": Columns(samples=37, dim=11),
    "one view": Columns(samples=11, dim=37, views=1),
    "one view, columns": Columns(samples=37, dim=11, views=1),
    "two samples": Columns(samples=2, dim=21),
    "two samples, one column": Columns(samples=2, dim=1),
    "one column": Columns(samples=33, dim=1),
    "one column, one view": Columns(samples=33, dim=1, views=1),
    "a column times 30": Columns(samples=19, dim=50, scaled=30.0),
    "a column times 1e3": Columns(samples=19, dim=50, scaled=1e3),
    "a column times 1e4": Columns(samples=19, dim=50, scaled=1e4),
    "a column times 1e4, columns": Columns(samples=50, dim=19, scaled=1e4),
    "tiny columns": Columns(samples=19, dim=35, tiny=True),
    "tiny columns, columns": Columns(samples=35, dim=19, tiny=True),
    "constant columns": Columns(samples=19, dim=35, constant=True),
    "constant columns, columns": Columns(samples=35, dim=19, constant=True),
    "means of 1e4": Columns(samples=19, dim=35, mean=1e4),
    "means of 1e4, columns": Columns(samples=35, dim=19, mean=1e4),
    "long rows": Columns(samples=7, dim=300),
    "long columns": Columns(samples=300, dim=7),
}


# ---- auto_covariance ------------------------------------------------------------------------------------------------


def _of_positions(case: Columns) -> Columns:
    return dataclasses.replace(case, positions=case.positions or 1)


AUTOS: dict[str, Columns] = {
    **{name: _of_positions(case) for name, case in _NUMERICS.items()},
    "one sample": Columns(samples=1, dim=9, positions=1),
    "one sample, one column": Columns(samples=1, dim=1, positions=1),
    "three positions": Columns(samples=11, dim=23, positions=3),
    "three positions, columns": Columns(samples=23, dim=11, positions=3),
    "three positions, one view": Columns(samples=11, dim=23, positions=3, views=1),
    "a position with a column times 1e3": Columns(samples=11, dim=50, positions=2, scaled=1e3),
    "all samples are one": Columns(samples=11, dim=23, positions=2, layout="expanded"),
    **{f"layout: {layout}": Columns(samples=11, dim=23, positions=3, layout=layout)
       for layout in ("rows", "first", "columns")},
    **{f"layout: {layout}, columns": Columns(samples=23, dim=11, positions=3, layout=layout)
       for layout in ("rows", "first", "columns")},
}  # fmt: skip


def run_auto(
    kernels: ModuleType,
    views: Views,
    grad: Callable[..., Tensor] = gradients,
    needs: tuple[bool, bool] = (True, True),
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Results:
    """What a backend's auto_covariance and auto_covariance_backward give.

    Args:
        grad: `grad(*shape)` makes the incoming gradients.
        needs: of x and y.
        weights: of the gradients of square, off_diagonal (besides 1 / N, so that neither drowns) and distance.
    """
    x, y = views
    square, off, distance, gram, exact = kernels.auto_covariance(x, y, True)
    assert square.dtype == off.dtype == distance.dtype == torch.float64
    if kernels is not reference:
        shapes = gram_shapes(x, y)
        assert (gram.shape, exact.shape) == shapes and (gram.dtype, exact.dtype) == (torch.float32, torch.bool)
        assert gram.is_contiguous() and exact.is_contiguous()
    incoming = [
        (grad(*like.shape) if like.dim() else grad(1)[0]).to(like.device) * weight
        for like, weight in ((square, weights[0]), (off, weights[1] / x.shape[0]), (distance, weights[2]))
    ]
    grad_x, grad_y = kernels.auto_covariance_backward(
        *incoming, x, y, gram, exact, needs[0], needs[1] and y is not None
    )
    assert grad_x.dtype == grad_y.dtype == x.dtype
    return {"square": square, "off_diagonal": off, "distance": distance, "grad_x": grad_x, "grad_y": grad_y}


def check_auto(
    kernels: ModuleType,
    case: Columns,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    views: Views | None = None,
    **options: Any,
) -> Results:
    """`options` as run_auto's. Returns what the kernels gave."""
    x, y = inputs(case, dtype) if views is None else views
    views = x.to(device), None if y is None else y.to(device)
    ours = run_auto(kernels, views, **options)
    truth = run_auto(reference, _in(torch.float64, views), **options)
    eager = run_auto(reference, _in(dtype, views), **options)
    compare(str(case), dtype, ours, truth, eager)
    return ours


def check_auto_without_gradient(kernels: ModuleType, case: Columns, device: str = "cpu") -> None:
    """The same bits, and nothing kept."""
    x, y = (None if x is None else x.to(device) for x in inputs(case))
    with_gradient, without = kernels.auto_covariance(x, y, True), kernels.auto_covariance(x, y, False)
    for a, b in zip(with_gradient[:3], without[:3], strict=True):
        assert torch.equal(a, b)
    assert without[3].shape == (case.views, case.positions, 0, 0) and without[3].dtype == torch.float32
    assert without[4].shape == (0, 0) and without[4].dtype == torch.bool


def check_auto_nan(kernels: ModuleType, case: Columns, device: str = "cpu", value: float = float("nan")) -> None:
    """One bad value in x spoils x's position, one statistic of distance, and nothing else."""
    x, y = inputs(case)
    x = x.clone()
    x[case.samples // 2, 0, case.dim // 2] = value
    check_auto(kernels, case, device=device, views=(x, y))


# ---- cross_correlation ----------------------------------------------------------------------------------------------


def _of_eps(case: Columns, eps: float) -> Columns:
    return dataclasses.replace(case, eps=eps)


CROSSES: dict[str, Columns] = {
    **_NUMERICS,
    "one sample": Columns(samples=1, dim=9),
    "without eps": Columns(samples=11, dim=37, eps=0.0),
    "without eps, columns": Columns(samples=37, dim=11, eps=0.0),
    "constant columns, without eps": _of_eps(_NUMERICS["constant columns"], 0.0),
    "constant columns, without eps, columns": _of_eps(_NUMERICS["constant columns, columns"], 0.0),
    "tiny columns, without eps": _of_eps(_NUMERICS["tiny columns"], 0.0),
    "large eps": Columns(samples=11, dim=37, eps=1.0),
    # Little is left of the other columns.
    "a column times 1e4, large eps": Columns(samples=19, dim=50, scaled=1e4, eps=1e6),
    **{f"layout: {layout}": Columns(samples=11, dim=23, layout=layout) for layout in ("rows", "columns")},
    **{f"layout: {layout}, columns": Columns(samples=23, dim=11, layout=layout) for layout in ("rows", "columns")},
}  # fmt: skip


def run_cross(
    kernels: ModuleType,
    views: Views,
    eps: float,
    grad: Callable[..., Tensor] = gradients,
    needs: tuple[bool, bool] = (True, True),
    weights: tuple[float, float] = (1.0, 1.0),
) -> Results:
    """What a backend's cross_correlation and cross_correlation_backward give; arguments as run_auto's."""
    x, y = views
    diagonal, off, gram, exact = kernels.cross_correlation(x, y, eps, True)
    assert diagonal.dtype == off.dtype == torch.float64
    if kernels is not reference:
        assert (gram.shape, exact.shape) == cross_shapes(x, y)
        assert (gram.dtype, exact.dtype) == (torch.float32, torch.bool)
        assert gram.is_contiguous() and exact.is_contiguous()
    grad_diagonal = grad(*diagonal.shape).to(x.device) * weights[0]
    grad_off = grad(1)[0].to(x.device) * weights[1] / x.shape[0]
    grad_x, grad_y = kernels.cross_correlation_backward(
        grad_diagonal, grad_off, x, y, eps, gram, exact, needs[0], needs[1] and y is not None
    )
    assert grad_x.dtype == grad_y.dtype == x.dtype
    return {"diagonal": diagonal, "off_diagonal": off, "grad_x": grad_x, "grad_y": grad_y}


def check_cross(
    kernels: ModuleType,
    case: Columns,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    views: Views | None = None,
    **options: Any,
) -> Results:
    """`options` as run_cross's. Returns what the kernels gave."""
    x, y = inputs(case, dtype) if views is None else views
    views = x.to(device), None if y is None else y.to(device)
    ours = run_cross(kernels, views, case.eps, **options)
    truth = run_cross(reference, _in(torch.float64, views), case.eps, **options)
    eager = run_cross(reference, _in(dtype, views), case.eps, **options)
    compare(str(case), dtype, ours, truth, eager)
    return ours


def check_cross_without_gradient(kernels: ModuleType, case: Columns, device: str = "cpu") -> None:
    """The same bits, and nothing kept."""
    x, y = (None if x is None else x.to(device) for x in inputs(case))
    with_gradient = kernels.cross_correlation(x, y, case.eps, True)
    without = kernels.cross_correlation(x, y, case.eps, False)
    for a, b in zip(with_gradient[:2], without[:2], strict=True):
        assert torch.equal(a, b)
    assert without[2].shape == (0, 0, 0) and without[2].dtype == torch.float32
    assert without[3].shape == (0,) and without[3].dtype == torch.bool


def check_cross_nan(kernels: ModuleType, case: Columns, device: str = "cpu", value: float = float("nan")) -> None:
    """One bad value in x spoils its column's statistics, and both gradients as far as the twin's."""
    x, y = inputs(case)
    x = x.clone()
    x[case.samples // 2, case.dim // 2] = value
    check_cross(kernels, case, device=device, views=(x, y))


# ---- decorrelation --------------------------------------------------------------------------------------------------


DECORRELATIONS: dict[str, Columns] = {
    **{name: case for name, case in _NUMERICS.items() if case.views == 2},
    "one sample": Columns(samples=1, dim=9),
    **{f"layout: {layout}": Columns(samples=11, dim=23, layout=layout) for layout in ("rows", "columns")},
}  # fmt: skip


def run_decorrelation(kernels: ModuleType, x: Tensor) -> Results:
    square, off_correlation, gram = kernels.decorrelation(x)
    assert square.dtype == off_correlation.dtype == gram.dtype == torch.float64
    return {"square": square, "off_correlation": off_correlation, "gram": gram}


def check_decorrelation(
    kernels: ModuleType,
    case: Columns,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    x: Tensor | None = None,
) -> Results:
    x = (inputs(case, dtype)[0] if x is None else x).to(device)
    ours = run_decorrelation(kernels, x)
    truth, eager = run_decorrelation(reference, x.double()), run_decorrelation(reference, x)
    compare(str(case), dtype, ours, truth, eager)
    return ours
