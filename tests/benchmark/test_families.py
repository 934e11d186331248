"""What holds for the cases and sides of every family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyssl_fast import benchmark
from pyssl_fast.benchmark import cases
from pyssl_fast.benchmark.cases import Case

README = Path(__file__).parents[2] / "benchmarks" / "README.md"
CASES = [case for name in benchmark.families() for case in benchmark.family(name).CASES]


def _tiny(case: Case) -> Case:
    dim = 16 if case.system.keys != "columns" else 16 if case.rows >= case.dim else 80
    return replace(case, rows=min(case.rows, 64), dim=dim, columns=256, only_ours=False)


TINY = {
    f"{case.system.name} {case.temperature} {case.rows >= case.dim}": _tiny(case)
    for case in CASES
    if case.system.keys not in ("parameters", "images")  # without losses: test_multi_tensor.py, test_augment.py
}


@pytest.mark.parametrize("case", TINY.values(), ids=TINY)
def test_sides_agree_in_losses_and_gradients(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = cases.inputs(case)
    monkeypatch.setattr(cases, "inputs", lambda case, seed: tensors)
    names = ["ours", "reference", *(name for name in case.system.peers if name not in ("compiled", "bare"))]
    seen = {}
    for side in cases.sides(case, names):
        for _ in range(2):  # the second call finds what the first has left: a queue, a bank
            side.reset()
            with side.settings():
                loss = side.call()
        seen[side.name] = [loss.float(), *(x.grad for x in tensors if x.requires_grad)]
    assert {*seen} >= {"cpu", "reference", *names[2:]}
    first, *others = seen.values()
    assert len(first) == 1 + sum(x.requires_grad for x in tensors)
    for other in others:
        for got, truth in zip(other, first, strict=True):
            torch.testing.assert_close(got, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_readme_lists_every_case_and_its_targets(case: Case) -> None:
    narrow = {name: f" (AVX2: {least:.3g}×)" for name, least in case.narrow.items()}
    goals = [f"{name} {least:.3g}×{narrow.get(name, '')}" for name, least in case.targets.items()]
    goals += [] if case.target_rate is None else [f"{case.target_rate:g} images/s"]
    memory = "" if case.target_mb is None else f"; {case.target_mb:g} MB"
    peers = "ours alone" if case.only_ours else ", ".join(case.system.peers)
    size = case.title.removeprefix(f"{case.system.name} ")
    assert f"| `{case.system.name}` | {size} | {peers} | {', '.join(goals) or '–'}{memory} |" in README.read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_targets_are_of_sides_that_there_are(case: Case) -> None:
    assert case.narrow.keys() <= case.targets.keys() <= case.system.peers.keys()
