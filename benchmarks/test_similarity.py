"""Similarity family: NT-Xent, our kernels beside their peers.

Every case asserts its loss, so that no wrong kernel looks fast.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyssl_fast.benchmark import similarity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = [(name, p) for name in similarity.ours(torch.device(DEVICE)) for p in similarity.precisions(DEVICE)]
SIDES = [*OURS, *((name, "highest") for name in similarity.PEERS)]
SIZES = [(512, 128), (2048, 128)]


@pytest.mark.parametrize("mode", ["forward+backward", "forward"])
@pytest.mark.parametrize(("rows", "dim"), SIZES, ids=lambda size: str(size))
@pytest.mark.parametrize(("name", "precision"), SIDES, ids=lambda word: word)
def test_nt_xent(
    benchmark: Any, device: torch.device, name: str, precision: str, rows: int, dim: int, mode: str
) -> None:
    case = similarity.Case(rows, dim, device=device, backward=mode == "forward+backward")
    missing = similarity.missing(case, [name])
    if missing:
        pytest.skip(missing[name])
    benchmark.group = f"nt_xent {rows}x{dim} {mode}"
    (side,) = similarity.sides(case, [name], [precision])

    def call() -> torch.Tensor | None:
        loss = side.call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss

    with side.settings():
        loss = benchmark.pedantic(call, setup=side.reset, rounds=7, warmup_rounds=2)

    if loss is not None:  # the bare products have none
        expected = similarity.eager(*similarity.inputs(case), case.temperature).detach()
        torch.testing.assert_close(loss.float(), expected, rtol=1e-3, atol=0)
