"""Every operator, its arguments, and which of them are learned: what the operators' tests run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyssl_fast.ops.similarity import COLUMNS, NEGATIVES, ROWS, SAME
from tests.functional.similarity.cases import embeddings

OPS = torch.ops.pyssl_fast
BOTH = [ROWS | NEGATIVES, COLUMNS | NEGATIVES]


@dataclass(frozen=True)
class Call:
    """An operator, its tensors for embeddings of some dtype, and its further arguments.

    learned: the tensors that get a gradient, which the operator named in `backward` forms.
    cast: how many of the tensors autocast casts. outputs: those that have a gradient.
    """

    name: str
    tensors: Callable[[torch.dtype], list[Any]]
    rest: tuple[Any, ...]
    learned: tuple[int, ...] = ()
    cast: int = 1
    backward: str = ""
    outputs: tuple[int, ...] = (0,)

    def arguments(self, backend: str = "reference", dtype: torch.dtype = torch.float32) -> list[Any]:
        tensors = self.tensors(dtype)
        for index in self.learned:
            tensors[index] = tensors[index].clone().requires_grad_()
        return [*tensors, *self.rest, backend]

    def __call__(self, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        result = getattr(OPS, self.name)(*arguments)
        return result if isinstance(result, tuple) else (result,)

    def loss(self, arguments: Sequence[Any]) -> Tensor:
        """A number with different weights for all that has a gradient."""
        result = self(arguments)
        found = [result[index].reshape(-1) for index in self.outputs]
        return torch.stack([(x * torch.linspace(-0.5, 1, len(x))).sum() for x in found]).sum()


def rows(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return embeddings(count, 1, 6, dtype, seed)


def number(value: float) -> Tensor:
    return torch.tensor(float(value))


def ids(count: int) -> Tensor:
    return torch.arange(count) % 4


SIMILARITY = {
    "contrast of views": Call(
        "contrast",
        lambda dtype: [rows(9, dtype), None, number(4), ids(9), None, None, None],
        ([ROWS | NEGATIVES, ROWS | SAME], [1.0, 1.0], 3, True, True),
        (0, 2),
        2,
        "contrast_backward",
        (0, 1),
    ),
    "contrast of rows and columns": Call(
        "contrast",
        lambda dtype: [rows(8, dtype), rows(11, dtype, 1), number(1), ids(8), ids(11), None, None],
        (BOTH, [1.5, 0.5], 2, False, True),
        (0, 1, 2),
        2,
        "contrast_backward",
        (0, 1),
    ),
    "contrast within limits": Call(
        "contrast",
        lambda dtype: [rows(8, dtype), rows(11, dtype, 1), number(2), None, None, torch.zeros(8), torch.ones(11)],
        (BOTH, [1.0, 1.0], 0, True, False),
        (0, 1, 2),
        2,
        "contrast_backward",
        (0, 1),
    ),
    "bank_contrast": Call(
        "bank_contrast",
        lambda dtype: [rows(8, dtype), rows(11, dtype, 1), number(2), ids(8), ids(11), torch.ones(8)],
        ([ROWS | NEGATIVES, ROWS | SAME], [1.0, 2.0], True),
        (0, 2),
        1,
        "bank_contrast_backward",
    ),
    "sigmoid_total": Call(
        "sigmoid_total",
        lambda dtype: [
            rows(8, dtype),
            rows(11, dtype, 1),
            number(3),
            number(-2),
            ids(8),
            ids(11),
            torch.rand(8).double(),
            torch.ones(8).double(),
        ],
        (True, True, True),
        (0, 1, 2, 3),
        2,
        "sigmoid_total_backward",
    ),
    "sigmoid_rows": Call(
        "sigmoid_rows",
        lambda dtype: [rows(8, dtype), rows(11, dtype, 1), number(3), number(-2), None, None, torch.ones(8).double()],
        (),
        (0, 1, 2, 3),
        2,
        "sigmoid_rows_backward",
    ),
    "neighbours": Call("neighbours", lambda dtype: [rows(8, dtype), rows(11, dtype, 1)], (3, None, None)),
    "neighbours among themselves": Call("neighbours", lambda dtype: [rows(8, dtype), None], (9, ids(8), None)),
    "hardest": Call("hardest", lambda dtype: [rows(8, dtype), ids(8), torch.zeros(8)], ()),
    "triplets": Call(
        "triplets", lambda dtype: [rows(8, dtype), ids(8)], (0.2, True, False), (0,), 1, "triplets_backward"
    ),
    "semi-hard triplets": Call(
        "triplets", lambda dtype: [rows(8, dtype), ids(8)], (3.0, False, True), (0,), 1, "triplets_backward"
    ),
}


def views(count: int, dtype: torch.dtype, *middle: int, dim: int = 6, two: bool = True) -> list[Any]:
    """x, y [count, *middle, dim]; y None where there is one view."""
    x, y = embeddings(2 * count, 1, dim * torch.Size(middle).numel(), dtype).view(2, count, *middle, dim).unbind()
    return [x, y if two else None]


def covariance(name: str, rest: tuple[Any, ...], *shape: int, dim: int = 6, two: bool = True, outputs: int) -> Call:
    return Call(
        name,
        lambda dtype: views(shape[0], dtype, *shape[1:], dim=dim, two=two),
        rest,
        (0, 1) if two else (0,),
        0,
        f"{name}_backward",
        tuple(range(outputs)),
    )


COVARIANCE = {
    "auto_covariance by rows": covariance("auto_covariance", (True,), 4, 3, outputs=3),
    "auto_covariance by columns": covariance("auto_covariance", (True,), 9, 2, outputs=3),
    "auto_covariance of one view": covariance("auto_covariance", (True,), 9, 1, two=False, outputs=2),
    "cross_correlation by rows": covariance("cross_correlation", (1e-5, True), 5, outputs=2),
    "cross_correlation by columns": covariance("cross_correlation", (1e-5, True), 9, dim=5, outputs=2),
    "cross_correlation of one view": covariance("cross_correlation", (1e-5, True), 9, two=False, outputs=2),
    "decorrelation": Call("decorrelation", lambda dtype: views(9, dtype)[:1], (), cast=0),
    "characteristic": Call(
        "characteristic",
        lambda dtype: [rows(8, dtype).view(2, 4, 6)],
        (0.7, 5),
        (0,),
        0,
        "characteristic_backward",
        (0, 1),
    ),
    "spread": Call("spread", lambda dtype: [rows(12, dtype).view(4, 3, 6)], (2,), (0,), 0, "spread_backward"),
}
CALLS = {**SIMILARITY, **COVARIANCE}
