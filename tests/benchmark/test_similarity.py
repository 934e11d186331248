from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyssl_fast.benchmark import cases, similarity
from pyssl_fast.benchmark.cases import Case
from pyssl_fast.kernels.cpu import similarity as kernels

SHAPES = [(4, 1), (130, 7), (1030, 33)]  # the last one: more rows than a block, and a block that is not full
TINY = {
    case.title: replace(case, rows=min(case.rows, 64), dim=16, columns=256, only_ours=False)
    for case in similarity.CASES
    if case.title not in ("nt-xent 8,192 × 128", "nt-xent 8,192 × 512", "nt-xent 65,536 × 128")  # as the first
}


def _leaves(function, case: Case) -> list[torch.Tensor]:
    """The loss and both gradients."""
    z0, z1 = cases.inputs(case)
    loss = function(z0, z1, case.temperature)
    loss.backward()
    return [loss, z0.grad, z1.grad]


@pytest.mark.parametrize(("rows", "dim"), SHAPES)
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_blocked_equals_eager(rows: int, dim: int, temperature: float) -> None:
    case = Case(similarity.NT_XENT, rows, dim, temperature=temperature)
    expected = _leaves(similarity.eager_nt_xent, case)
    for got, truth in zip(_leaves(similarity.blocked_nt_xent, case), expected, strict=True):
        torch.testing.assert_close(got, truth, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("name", ["nt-xent", "clip", "siglip", "moco", "mean-shift", "supcon", "dcl"])
def test_sides_agree_in_low_precision(name: str, dtype: torch.dtype, backward: bool) -> None:
    case = next(replace(case, dtype=dtype, backward=backward) for case in TINY.values() if case.system.name == name)
    losses = {}
    for side in cases.sides(case, ["ours", next(iter(case.system.peers))]):
        with side.settings():
            losses[side.name] = float(side.call().float())
    expected, got = losses.values()
    assert got == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("name", ["moco", "supcon"])
def test_twins_run_no_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*_: object) -> None:
        raise AssertionError("a kernel ran")

    for operator in ("contrast", "contrast_backward", "bank_contrast"):
        monkeypatch.setattr(kernels, operator, kernel)
    case = next(case for case in TINY.values() if case.system.name == name)
    (side,) = cases.sides(case, ["twin"])
    with side.settings():
        assert torch.isfinite(side.call())
    with pytest.raises(AssertionError, match="a kernel ran"):
        (side,) = cases.sides(case, ["cpu"])
        with side.settings():
            side.call()


def test_moco_updates_its_queue_and_copies_none() -> None:
    case = next(case for case in TINY.values() if case.system is similarity.MOCO)
    query, key, bank = cases.inputs(case)
    before = bank.clone()
    key.mul_(3).neg_()  # other keys than those that the queue starts with
    case.system.ours(case, query, key, bank)()
    torch.testing.assert_close(bank[:64], torch.nn.functional.normalize(key, dim=1))
    torch.testing.assert_close(bank[64:], before[64:])


def test_the_largest_case_is_ours_alone() -> None:
    (case,) = (case for case in similarity.CASES if case.only_ours)
    assert case.rows == 65536
    assert all(side.ours for side in cases.sides(case.small()))
