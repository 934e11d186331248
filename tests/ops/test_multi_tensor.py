"""The operators on lists: what they change is what their schema says, compiled too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels import multi_tensor_cases as cases

OPS = torch.ops.pyssl_fast
SIZES = (3, 0, 1030, 1)


def arguments(name: str, backend: str) -> list[Any]:
    if name == "square_sum":
        return [cases.make(SIZES, cases.F32), backend]
    if name == "ema_":
        of = cases.ema(cases.F32, cases.BF16, cases.F16, sizes=SIZES)
        of["teacher"].append(torch.zeros(3, dtype=torch.int64))
        of["student"].append(torch.arange(3))
        return [*of.values(), backend]
    if name == "adamw_":
        of = cases.adamw(sizes=SIZES, amsgrad=True, shadow=cases.BF16)
        order = [*cases.ADAMW[:1], "gradients", *cases.ADAMW[1:]]
    else:
        of = cases.lars(sizes=SIZES, shadow=cases.BF16)
        order = ["parameters", "gradients", "momentum_buffers", "teacher", "shadow"]
    return [*(of[key] for key in order), *(value for key, value in of.items() if key not in order), backend]


each_operator = pytest.mark.parametrize("name", ["ema_", "square_sum", "adamw_", "lars_"])
each_backend = pytest.mark.parametrize("backend", ["reference", "cpu"])


@each_operator
@each_backend
def test_passes_opcheck(name: str, backend: str) -> None:
    torch.library.opcheck(getattr(OPS, name).default, tuple(arguments(name, backend)))


@each_operator
@each_backend
def test_changes_the_same_compiled(name: str, backend: str) -> None:
    def call(of: list[Any]) -> Tensor | None:
        return getattr(OPS, name)(*of)

    eager, compiled = (arguments(name, backend) for _ in range(2))
    expected = call(eager)
    result = torch.compile(call, backend="aot_eager", fullgraph=True)(compiled)
    if expected is not None:
        assert torch.equal(expected, result)
    for a, b in zip(eager, compiled, strict=True):
        if isinstance(a, list) and a and isinstance(a[0], Tensor):
            assert cases.same_bits(a, b)


@each_operator
def test_backends_agree(name: str) -> None:
    one, other = (arguments(name, backend) for backend in ("reference", "cpu"))
    results = [getattr(OPS, name)(*of) for of in (one, other)]
    if results[0] is not None:
        torch.testing.assert_close(*results)
    for a, b in zip(one[:-1], other[:-1], strict=True):
        if isinstance(a, list) and a and isinstance(a[0], Tensor):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y)
