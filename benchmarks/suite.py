"""What the families' suites share: their cases with every side, and how one is timed and its loss checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pyssl_fast.benchmark import cases
from pyssl_fast.benchmark.cases import Case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODES = ("forward+backward", "forward")


def parameters(table: Sequence[Case], first_rows: Sequence[int] = (512, 2048)) -> list[Any]:
    """(case, side, precision): the first system at these sizes, the others once, at most 2,048 rows: seconds a case."""
    family = table[0].system.family
    ours = [(name, p) for name in cases.ours(family, DEVICE) for p in cases.precisions(family, DEVICE)]
    names = list(dict.fromkeys(case.system.name for case in table))
    chosen = cases.select(table, names[:1], first_rows)
    for name in names[1:]:
        first = cases.select(table, [name])[0]
        chosen += cases.select(table, [name], [min(first.rows, 2048)])[:1]
    found = []
    for mode in MODES:
        for case in cases.configure(chosen, temperature=None, dtype=torch.float32, device=DEVICE, mode=mode):
            if case.backward == (mode == MODES[0]):  # look-ups and steps go once
                sides = [*ours, *((name, "highest") for name in case.system.peers)]
                found += [
                    pytest.param(case, name, p, id=f"{case.title.replace(' × ', 'x')}-{case.mode}-{name}-{p}")
                    for name, p in sides
                ]
    return found


def run(benchmark: Any, case: Case, name: str, precision: str) -> None:
    """Time one side. Its loss is held against the twin's, so that no wrong kernel looks fast."""
    missing = cases.missing(case, [name])
    if missing:
        pytest.skip(missing[name])
    benchmark.group = f"{case.title} {case.mode}"
    (side,) = cases.sides(case, [name], [precision])

    def call() -> torch.Tensor | None:
        loss = side.call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return loss

    with side.settings():
        loss = benchmark.pedantic(call, setup=side.reset, rounds=7, warmup_rounds=2)

    if loss is not None:  # the bare products have none
        (reference,) = cases.sides(case, ["reference"])
        expected = reference.call()
        assert expected is not None
        torch.testing.assert_close(loss.float(), expected.float(), rtol=1e-3, atol=0)
