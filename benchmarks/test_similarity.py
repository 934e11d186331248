"""Similarity family: every system of the benchmark's table, our kernels beside their peers.

Every case asserts its loss, so that no wrong kernel looks fast.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyssl_fast.benchmark import cases, similarity
from pyssl_fast.benchmark.cases import Case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OURS = [(name, p) for name in cases.ours("similarity", DEVICE) for p in cases.precisions("similarity", DEVICE)]
MODES = ("forward+backward", "forward")


def _cases() -> list[Any]:
    """NT-Xent at two sizes, the others once; at most 2,048 rows, so that a case takes seconds."""
    names = list(dict.fromkeys(case.system.name for case in similarity.CASES))
    chosen = cases.select(similarity.CASES, ["nt-xent"], [512, 2048])
    for name in names[1:]:
        first = cases.select(similarity.CASES, [name])[0]
        chosen += cases.select(similarity.CASES, [name], [min(first.rows, 2048)])[:1]
    found = []
    for mode in MODES:
        for case in cases.configure(chosen, temperature=None, dtype=torch.float32, device=DEVICE, mode=mode):
            if case.backward == (mode == MODES[0]):  # look-ups go forward alone
                sides = [*OURS, *((name, "highest") for name in case.system.peers)]
                found += [
                    pytest.param(case, name, p, id=f"{case.title.replace(' × ', 'x')}-{mode}-{name}-{p}")
                    for name, p in sides
                ]
    return found


@pytest.mark.parametrize(("case", "name", "precision"), _cases())
def test_similarity(benchmark: Any, case: Case, name: str, precision: str) -> None:
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
